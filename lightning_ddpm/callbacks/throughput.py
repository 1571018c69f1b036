"""Logs the training speed."""

import statistics
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks.trainer_access import log_now
from lightning_ddpm.utils.lightning_internals import is_accumulating


class Throughput(Callback):
    """Logs ``train/images_per_second``: of the median step of the last few, which excludes evaluations."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._ended: float | None = None
        self._images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[0]) * trainer.world_size
        if is_accumulating(trainer):
            return
        now, images = time.monotonic(), self._images
        self._images = 0
        if self._ended is not None:
            self._seconds.append(now - self._ended)
        self._ended = now
        if len(self._seconds) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            rate = images / statistics.median(self._seconds)
            self._seconds.clear()
            log_now(trainer, {"train/images_per_second": rate})
