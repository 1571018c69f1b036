"""How far training is: one bar for the whole run on a terminal, a plain line now and then in a log file."""

import time
from abc import ABC, abstractmethod
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_ddpm.callbacks.evaluation import Evaluation
from lightning_ddpm.utils.console import format_duration, report


class StepProgress(ProgressBar, ABC):
    """Counts optimizer steps, not epochs, from the first to the last of the run."""

    outputs: Any
    """What the last training step has returned."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

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
            self.outputs = outputs
            self.show(trainer, pl_module)

    @abstractmethod
    def start(self, step: int, total: int) -> None:
        """Training begins after ``step`` of ``total`` steps."""

    @abstractmethod
    def show(self, trainer: Trainer, module: LightningModule) -> None:
        """A batch is done."""

    def figures(self, trainer: Trainer, module: LightningModule) -> str:
        """The loss of this step, and what the last validation and evaluations found, in words.

        What training logs for the progress bar itself, Lightning would read from the device after every step.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Lightning has divided the loss, so that those of a step's batches add up to their mean.
        shown: dict[str, Any] = {"train/loss": float(self.outputs["loss"]) * trainer.accumulate_grad_batches}
        shown |= self.get_metrics(trainer, module)
        for each in callbacks:
            if isinstance(each, Evaluation):
                shown |= each.found
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, (int, float)))


class ProgressLines(StepProgress):
    """A line every so many seconds.

    Args:
        seconds: between lines.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.seconds = seconds

    def start(self, step: int, total: int) -> None:
        self._first, self._total = step, total
        self._started = self._said = time.monotonic()

    def show(self, trainer: Trainer, module: LightningModule) -> None:
        now, step = time.monotonic(), trainer.global_step
        if step == self._first or (now - self._said < self.seconds and step != self._total):
            return
        self._said = now
        left = (now - self._started) / (step - self._first) * (self._total - step)
        report(f"step {step} of {self._total}: {self.figures(trainer, module)}; {format_duration(left)} left")


class ProgressRich(StepProgress):
    """A bar for the whole run; what is printed meanwhile appears above it.

    Args:
        seconds: between looks at it.
    """

    _bar: Progress | None = None

    def __init__(self, seconds: float = 0.5) -> None:
        super().__init__()
        self.seconds, self._said = seconds, 0.0

    def start(self, step: int, total: int) -> None:
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._task = self._bar.add_task("fit", total=total, completed=step, figures="")
        self._bar.start()

    def show(self, trainer: Trainer, module: LightningModule) -> None:
        assert self._bar is not None
        now, step = time.monotonic(), trainer.global_step
        if now - self._said >= self.seconds or step == self._bar.tasks[0].total:  # reading figures waits for the device
            self._said = now
            self._bar.update(self._task, completed=step, figures=self.figures(trainer, module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
