"""A disk that is full for a while."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


@contextmanager
def limit_files(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


class FullFrom(Callback):
    """Lets no file grow beyond 10 bytes from one step on, up to another, or up to the end of fit."""

    def __init__(self, first: int, until: int = 10**9) -> None:
        self.first, self.until = first, until
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        full = self.first <= trainer.global_step < self.until
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 if full else self.limits[0], self.limits[1]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


class FullAtStart(Callback):
    """Lets no file grow beyond 10 bytes from the start of training on; the test ends that."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
