"""Writes the images that ``predict`` generates."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter

from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.data.sharding import ImageRange


class PredictionWriter(BasePredictionWriter):
    """Writes the images that ``predict`` generates as PNG files into the run's folder ``predictions``."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: ImageRange,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(prediction, start=int(batch[1])):
            save_image(pixels, folder / f"{index:06d}.png")
