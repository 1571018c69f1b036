"""Callbacks that run every N steps or epochs, or once at the end of training."""

from abc import ABC, abstractmethod
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks.trainer_access import InterruptionError, log_now
from lightning_ddpm.utils.errors import UserError


class Interval:
    """Determines when something is due.

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
        step, before = trainer.global_step, self._last
        self._last = step
        if step == before:
            return False
        if self.epochs is not None:
            return trainer.is_last_batch and (trainer.current_epoch + 1) % self.epochs == 0
        return self.steps is not None and step % self.steps == 0


class PeriodicCallback(Callback, ABC):
    """Runs at an interval during fit, or once when it ends.

    A signal may end the work at an interval before it is done. Checkpoints then saves and stops the run, and has the
    work done again when the run is resumed.

    Attributes:
        interrupted: the signal that ended the work of this step, on all ranks, or 0.

    Args:
        interval: ``None`` for the end. That run comes after last.ckpt is written, with the model on its device, and
            again in a run that is resumed with no step left; it is omitted with ``fast_dev_run``.
    """

    def __init__(self, interval: Interval | None) -> None:
        self.interval = interval
        self.interrupted = 0

    @abstractmethod
    def run_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Do the callback's work now; every rank calls it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval:
            self.interval.start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.interval and self.interval.is_due_after_batch(trainer):
            self.run_at_interval(trainer, pl_module)

    def run_at_interval(self, trainer: Trainer, module: LightningModule) -> None:
        """Do the work of this step, and note whether it was done or interrupted."""
        self.interrupted = 0
        try:
            self.run_in_fit(trainer, module)
        except InterruptionError as signal:
            self.interrupted = signal.number

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            device = pl_module.device
            pl_module.to(trainer.strategy.root_device)  # by now Lightning has moved it to the CPU
            try:
                self.run_in_fit(trainer, pl_module)
            finally:
                pl_module.to(device)


class Measurement(PeriodicCallback):
    """Measures something of the model in fit, at an interval or once at the end, and in test."""

    @abstractmethod
    def announce(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        """Print what will be measured ``when``, and its cost; refuse before any work what cannot be measured."""

    @abstractmethod
    def measure(self, trainer: Trainer, module: LightningModule, stage: str) -> dict[str, float]:
        """Measure with the averaged weights, print the result and save the plots; every rank must call.

        Args:
            trainer, module: the run.
            stage: ``val`` or ``test``, the first part of every name.

        Returns:
            The metrics to log.
        """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.announce(trainer, pl_module, "each time" if self.interval else "at the end of training")

    def run_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        log_now(trainer, self.measure(trainer, module, "val"))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.announce(trainer, pl_module, "after the losses")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            pl_module.log_dict(self.measure(trainer, pl_module, "test"))
