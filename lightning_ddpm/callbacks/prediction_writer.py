"""Writes the images that ``predict`` generates."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.data.numbered_images import write_images
from lightning_ddpm.data.sharding import ImageRange
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.files import flush_files
from lightning_ddpm.utils.run_files import PREDICTIONS


class PredictionWriter(Callback):
    """Writes the images that ``predict`` generates as PNG files into the run's folder ``predictions``."""

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ImageRange, *_: Any
    ) -> None:
        values = getattr(pl_module, "values", UINT8)
        write_images(Path(trainer.default_root_dir) / PREDICTIONS, int(batch[1]), outputs, values)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flush_files()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            report(f"wrote the images in {Path(trainer.default_root_dir) / PREDICTIONS}")
