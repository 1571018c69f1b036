"""A tiny run over two epochs, whose parts can be sent to other processes: its data, and a record of its metrics."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.utils.lightning_internals import is_accumulating

STEP, STEPS = 64, 20
IMAGES = 9 * STEP + 22
"""Of an epoch: nine steps and a short one, which four ranks cannot divide equally."""
PLAIN: dict[str, Any] = {
    "optimizer": partial(torch.optim.SGD, lr=0.1),
    "lr_scheduler": partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
    "class_names": list("0123456789"),
}
"""What can be sent to another process; with SGD an error of a sum stays as small as it is."""


class SomeDigits(Digits):
    """The first images of the digits, of which every seventh has no label."""

    def open(self, root: Path, split: Any) -> ImageDataset:
        images, labels = super().open(root, split).__getitems__(range(IMAGES if split == "train" else 150))
        labels[::7] = -1
        return MemoryDataset(images, labels)


class Record(Callback):
    """Writes the metrics of every step, and at the end those of the validation, into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_accumulating(trainer):
            self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            last = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.path.write_text(json.dumps([*self.steps, last]))


class SaveAt(Callback):
    """Saves a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step and not is_accumulating(trainer):
            trainer.save_checkpoint(self.path)
