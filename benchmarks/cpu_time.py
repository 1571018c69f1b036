"""A callback that measures training in CPU time, which other processes on the machine change little."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.models.checkpoint import read_checkpoint


class CPUTime(Callback):
    """Keeps the CPU time of each training step in the run's checkpoints; evaluations and checkpoints are not in it.

    Attributes:
        seconds: of each step, of all threads of the process.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds.append(time.process_time() - self._began)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def read_seconds(folder: Path) -> list[float]:
    """Return the CPU time of each step of a run."""
    seconds: list[float] = read_checkpoint(folder / "last.ckpt")["callbacks"]["CPUTime"]["seconds"]
    return seconds
