"""What a run does when its numbers, or one of its processes, break."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.optimizer import DeferredRead, collect_gradients, skip_step_where
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError


@dataclass
class StepRecord:
    """An optimizer step, and what is said of it if its loss or gradient is not finite.

    Attributes:
        step: its number, from 1.
        rates: learning rates.
        batches: index, t and losses of each of its batches, on this rank.
    """

    step: int
    rates: list[float]
    batches: list[tuple[int, Tensor, Tensor]]


class NonFinite(Callback):
    """Leaves out an optimizer step whose loss or gradient is not finite, and ends the run after too many in a row.

    The weights are never touched by such a step, so that the checkpoints stay good. A fused optimizer leaves it out by
    itself, on the device, and it is said one step later, when the device is busy with the next: nothing waits for it.
    In half precision an infinite gradient of a finite loss is the gradient scaler's to mend, until its scale is down
    at 1.

    Args:
        limit: steps left out in a row that end the run.
    """

    def __init__(self, limit: int = 10) -> None:
        if limit < 1:
            raise UserError(f"NonFinite's limit must be at least 1, got {limit}")
        self.limit = limit
        self.in_a_row = self.skipped = 0
        self._batches: list[tuple[int, Tensor, Tensor]] = []
        self._before: tuple[StepRecord, DeferredRead] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.in_a_row, self._batches, self._before = 0, [], None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        broken = nn.utils.get_total_norm(collect_gradients(optimizer)).isfinite().logical_not()
        self._remember(trainer, pl_module)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        taken = StepRecord(trainer.global_step + 1, rates, self._batches)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None and skip_step_where(optimizer, broken):
            self._look_back(trainer)
            self._before = taken, DeferredRead(broken)
            return
        if not broken:
            self.in_a_row = 0
            return
        if scaler is not None and scaler.get_scale() > 1 and not self._some_loss_is_not_finite(trainer):
            return
        if scaler is None:
            optimizer.zero_grad()  # without gradients an optimizer leaves weights and its own state alone
        self._count(trainer, taken)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            self._remember(trainer, pl_module)
        else:
            self._batches = []
        if self.skipped:
            pl_module.log("train/steps_left_out", float(self.skipped))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look back as long as the images are in this epoch's order; this is the last there is of a run, too."""
        before = self.skipped
        self._look_back(trainer)
        for logger in trainer.loggers if self.skipped > before else ():
            logger.log_metrics({"train/steps_left_out": float(self.skipped)}, step=trainer.global_step - 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit) and self._before is not None:  # stopped by a signal
            (taken, broken), self._before = self._before, None
            if broken.read()[0]:
                self._say(trainer, taken, self.in_a_row + 1)

    def state_dict(self) -> dict[str, Any]:
        unsaid = self._before is not None and self._before[1].read()[0]
        return {"skipped": self.skipped + int(unsaid)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _look_back(self, trainer: Trainer) -> None:
        """Say of the step before whether it was left out; every rank has the same gradients and finds the same."""
        if self._before is None:
            return
        (taken, broken), self._before = self._before, None
        if broken.read()[0]:
            self._count(trainer, taken)
        else:
            self.in_a_row = 0

    def _count(self, trainer: Trainer, taken: StepRecord) -> None:
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        if self.in_a_row >= self.limit:
            raise UserError(self._verdict(trainer, taken))
        self._say(trainer, taken, self.in_a_row)

    def _say(self, trainer: Trainer, taken: StepRecord, in_a_row: int) -> None:
        if trainer.is_global_zero:
            report(
                f"step {taken.step} is left out: its loss or gradient is not finite "
                f"({in_a_row} in a row, {self.limit} end the run)"
            )

    def _remember(self, trainer: Trainer, module: LightningModule) -> None:
        if (seen := getattr(module, "last_losses", None)) is not None:
            self._batches.append((trainer.fit_loop.batch_idx, *seen))

    def _some_loss_is_not_finite(self, trainer: Trainer) -> bool:
        """On any rank; every rank calls, because all have the same gradients."""
        mine = any(not bool(losses.isfinite().all()) for _, _, losses in self._batches)
        return trainer.strategy.reduce_boolean_decision(mine, all=False)

    def _verdict(self, trainer: Trainer, taken: StepRecord) -> str:
        said = (
            f"training has diverged: {self.in_a_row} steps in a row had a loss or gradient that is not finite, the "
            f"last of them step {taken.step} with learning rate {', '.join(f'{rate:g}' for rate in taken.rates)}"
        )
        data = trainer.datamodule  # type: ignore[attr-defined]
        for batch, t, losses in taken.batches:
            bad = ~losses.isfinite()
            which = (bad if bad.any() else torch.ones_like(bad)).nonzero().flatten().tolist()
            numbers = data.list_batch_indices(batch) if isinstance(data, ImageDataModule) else list(range(len(t)))
            pairs = ", ".join(f"{numbers[index]} at t={int(t[index])}" for index in which[:8])
            what = "of images" if bad.any() else "gradient alone, of images"
            said += f"; on rank {trainer.global_rank} {what} {pairs}{', ...' if len(which) > 8 else ''}"
        return f"{said}. The checkpoints are of the weights before. Lower the learning rate, or clip the gradients"
