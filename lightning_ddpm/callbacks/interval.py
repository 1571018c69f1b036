"""Callbacks that run every N steps or epochs, or once at the end of training."""

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks.trainer_access import move_to_device
from lightning_ddpm.utils.errors import UserError


class Interval:
    """Tells when something is due.

    Args:
        steps: number of optimizer steps between two times, or ``None``.
        epochs: number of epochs between two times, or ``None``. Exactly one of the two is given.
    """

    def __init__(self, steps: int | None, epochs: int | None) -> None:
        if (steps is None) == (epochs is None) or (steps or epochs or 0) < 1:
            raise UserError(
                "give either every_n_steps or every_n_epochs, at least 1, "
                f"got every_n_steps={steps} and every_n_epochs={epochs}"
            )
        self.steps, self.epochs = steps, epochs
        self._last = 0

    @classmethod
    def or_end(cls, steps: int | None, epochs: int | None) -> "Interval | None":
        """Return the interval, or ``None``, which stands for the end of training, if neither number is given."""
        return None if steps is None and epochs is None else cls(steps, epochs)

    def start(self, trainer: Trainer) -> None:
        """Count from the step where training starts: what was due there has been done by the run before."""
        self._last = trainer.global_step

    def is_due_after_batch(self, trainer: Trainer) -> bool:
        """Return whether it is due after this batch: once per step, however many batches the step takes."""
        step = trainer.global_step
        due = self.steps is not None and step != self._last and step % self.steps == 0
        self._last = step
        return due

    def is_due_after_epoch(self, trainer: Trainer) -> bool:
        """Return whether it is due after this epoch."""
        return self.epochs is not None and (trainer.current_epoch + 1) % self.epochs == 0


class Occasion(Enum):
    """The hook of fit in which a :class:`PeriodicCallback` runs."""

    STEP = auto()
    EPOCH = auto()
    END = auto()


class PeriodicCallback(Callback, ABC):
    """Runs at an interval during fit, or once when it ends.

    Args:
        interval: ``None`` for the end. That run comes after last.ckpt is written, with the model on its device, and
            again in a run that is resumed with no step left; it is omitted with ``fast_dev_run``.
    """

    def __init__(self, interval: Interval | None) -> None:
        self.interval = interval

    @abstractmethod
    def run_in_fit(self, trainer: Trainer, module: LightningModule, occasion: Occasion) -> None:
        """Do the callback's work now; every rank calls it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval:
            self.interval.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval and self.interval.is_due_after_batch(trainer):
            self.run_in_fit(trainer, pl_module, Occasion.STEP)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval and self.interval.is_due_after_epoch(trainer):
            self.run_in_fit(trainer, pl_module, Occasion.EPOCH)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with move_to_device(trainer, pl_module):
                self.run_in_fit(trainer, pl_module, Occasion.END)
