"""Writes the images that ``predict`` generates."""

from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.data.sharding import ImageRange
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.files import flush_files, write_atomically
from lightning_ddpm.utils.run_files import PREDICTIONS


class PredictionWriter(Callback):
    """Writes the images that ``predict`` generates as PNG files into the run's folder ``predictions``."""

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ImageRange, *_: Any
    ) -> None:
        folder = Path(trainer.default_root_dir) / PREDICTIONS
        for index, pixels in enumerate(outputs, start=int(batch[1])):
            write_atomically(folder / f"{index:06d}.png", partial(save_image, pixels), flush=False)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flush_files()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            report(f"wrote the images in {Path(trainer.default_root_dir) / PREDICTIONS}")
