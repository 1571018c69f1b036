"""Short runs of the tiny model, and the TensorBoard curves that they write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.tiny import quiet_trainer, tiny_model
from pytorch_lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ddpm.callbacks import RunLogger
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.ddpm import DDPM


def fit(folder: Path, callbacks: Sequence[Callback], model: DDPM | None = None, **arguments: Any) -> Trainer:
    torch.manual_seed(0)  # dropout's
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = quiet_trainer(folder, callbacks=list(callbacks), **({"max_steps": 4} | arguments))
    trainer.fit(model or tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16), ckpt_path=ckpt_path)
    return trainer


def tensorboard(folder: Path, step: int = 0) -> RunLogger:
    return RunLogger(folder / "tensorboard", step)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
