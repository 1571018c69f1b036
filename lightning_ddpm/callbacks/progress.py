"""Displays the progress of training: one bar for the whole run on a terminal, periodic lines in a log file."""

import time
from abc import ABC, abstractmethod
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_ddpm.callbacks.trainer_access import find_evaluations
from lightning_ddpm.utils.console import format_duration, report


class StepProgress(ProgressBar, ABC):
    """Counts optimizer steps, not epochs, over the whole run."""

    _enabled = True

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self.start(trainer.global_step, int(trainer.estimated_stepping_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._enabled:
            self.show(trainer, pl_module, outputs)

    @abstractmethod
    def start(self, step: int, total: int) -> None:
        """Begin the display after ``step`` of ``total`` steps."""

    @abstractmethod
    def show(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        """Update the display after a batch, for which the training step returned ``outputs``."""

    def format_metrics(self, trainer: Trainer, module: LightningModule, outputs: Any) -> str:
        """Return the step's loss and the metrics of the last validation and evaluations as text.

        The loss is not logged for the progress bar, because Lightning would then read it from the device at every step.
        """
        # Lightning divided the loss, so that the losses of a step's batches add up to their mean.
        shown: dict[str, Any] = {"train/loss": float(outputs["loss"]) * trainer.accumulate_grad_batches}
        shown |= self.get_metrics(trainer, module)
        for each in find_evaluations(trainer):
            shown |= each.last_metrics
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, (int, float)))


class ProgressLines(StepProgress):
    """Prints a line at an interval of seconds.

    Args:
        seconds: time between lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.seconds = seconds

    def start(self, step: int, total: int) -> None:
        self._first, self._total = step, total
        self._started = self._printed = time.monotonic()

    def show(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        now, step = time.monotonic(), trainer.global_step
        if step == self._first or (now - self._printed < self.seconds and step != self._total):
            return
        self._printed = now
        left = (now - self._started) / (step - self._first) * (self._total - step)
        metrics = self.format_metrics(trainer, module, outputs)
        report(f"step {step} of {self._total}: {metrics}; {format_duration(left)} left")


class ProgressRich(StepProgress):
    """Shows a bar for the whole run; lines that are printed meanwhile appear above it.

    Args:
        seconds: time between updates.
    """

    _bar: Progress | None = None

    def __init__(self, seconds: float = 0.5) -> None:
        super().__init__()
        self.seconds, self._updated = seconds, 0.0

    def start(self, step: int, total: int) -> None:
        done = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"))
        self._bar = Progress(*done, *left)
        self._task = self._bar.add_task("fit", total=total, completed=step, metrics="")
        self._bar.start()

    def show(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        assert self._bar is not None
        now, step = time.monotonic(), trainer.global_step
        # Not after every step, because reading the loss waits for the device.
        if now - self._updated >= self.seconds or step == self._bar.tasks[0].total:
            self._updated = now
            self._bar.update(self._task, completed=step, metrics=self.format_metrics(trainer, module, outputs))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
