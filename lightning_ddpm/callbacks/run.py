"""The run itself: its folder, what it says at the start, how fast it goes."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter

from lightning_ddpm.console import say
from lightning_ddpm.data.sampler import ImageRange
from lightning_ddpm.images import save


class RunSummary(Callback):
    """Says before the first step what is about to happen and where it goes, and at the end what can be done with it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        steps = trainer.estimated_stepping_batches
        if not trainer.is_global_zero:
            return
        device = pl_module.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        per_epoch = -(-len(data.train_dataloader()) // trainer.accumulate_grad_batches)
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        say(
            f"run: {Path(trainer.default_root_dir).absolute()} "
            f"(checkpoints, config.yaml, pictures; tensorboard --logdir {trainer.default_root_dir})\n"
            f"device: {trainer.world_size} x {name}, precision {trainer.precision}\n"
            f"images: {len(data.train)} of {data.channels}x{data.size}x{data.size}, {len(data.held_out)} held out\n"
            f"model: {parameters:,} parameters\n"
            f"training: {steps:g} steps of {batch} images, {per_epoch} steps an epoch"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        last = Path(trainer.default_root_dir) / "last.ckpt"
        if stage == "fit" and trainer.is_global_zero and last.is_file():  # after on_fit_end, where Evaluation may work
            say(f"done: python -m lightning_ddpm sample --ckpt {last} --n 64 --out samples")


class Throughput(Callback):
    """Logs ``train/images_per_second``: the median step of the last few, so that evaluations do not count."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._ended: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._ended is not None:
            self._seconds.append(now - self._ended)
        self._ended = now
        if len(self._seconds) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            images = len(batch[0]) * trainer.world_size
            rate = images / statistics.median(self._seconds)
            self._seconds.clear()
            for logger in trainer.loggers:
                logger.log_metrics({"train/images_per_second": rate}, step=trainer.global_step - 1)


class ImageWriter(BasePredictionWriter):
    """Writes what ``predict`` generates as PNG files into the run's folder ``predictions``."""

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
            save(pixels, folder / f"{index:06d}.png")
