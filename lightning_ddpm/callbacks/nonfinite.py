"""Skips optimizer steps whose loss or gradient is not finite."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_ddpm.callbacks.trainer_access import log_now
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.optimizer import DeferredRead, measure_gradient_norm, skip_step_where
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.lightning_internals import is_accumulating


@dataclass
class StepRecord:
    """An optimizer step, with what is reported if its loss or gradient is not finite.

    Attributes:
        step: its number, from 1.
        rates: learning rates.
        batches: index, t and losses of each of its batches, on this rank.
    """

    step: int
    rates: list[float]
    batches: list[tuple[int, Tensor, Tensor]]


class NonFinite(Callback):
    """Skips an optimizer step whose loss or gradient is not finite, and ends the run after too many in a row.

    Such a step never changes the weights, so that the checkpoints stay valid. The number of skipped steps is logged as
    ``train/steps_skipped``. A fused optimizer skips the step on the device, and the step is reported one step later,
    while the device computes the next one, so that nothing waits for it. In half precision the gradient scaler handles
    an infinite gradient of a finite loss, until its scale has fallen to 1.

    Args:
        limit: number of consecutive skipped steps that ends the run.
    """

    def __init__(self, limit: int = 10) -> None:
        if limit < 1:
            raise UserError(f"NonFinite's limit must be at least 1, got {limit}")
        self.limit = limit
        self.in_a_row = self.skipped = 0
        self._batches: list[tuple[int, Tensor, Tensor]] = []
        self._pending: tuple[StepRecord, DeferredRead] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.in_a_row, self._batches, self._pending = 0, [], None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        broken = measure_gradient_norm(optimizer).isfinite().logical_not()
        self._record_losses(trainer, pl_module)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        record = StepRecord(trainer.global_step + 1, rates, self._batches)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None and skip_step_where(optimizer, broken):
            self._check_pending(trainer)
            self._pending = record, DeferredRead(broken)
            return
        if not broken:
            self.in_a_row = 0
            return
        if scaler is not None and scaler.get_scale() > 1 and not self._has_nonfinite_loss(trainer):
            return
        if scaler is None:
            optimizer.zero_grad()  # without gradients an optimizer changes neither weights nor its state
        self._count(trainer, record)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if is_accumulating(trainer):
            self._record_losses(trainer, pl_module)
        else:
            self._batches = []
        if self.skipped:
            pl_module.log("train/steps_skipped", float(self.skipped))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step while the images are still in this epoch's order, and because the run may end here."""
        before = self.skipped
        self._check_pending(trainer)
        if self.skipped > before:
            log_now(trainer, {"train/steps_skipped": float(self.skipped)})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit) and self._pending is not None:  # stopped by a signal
            (record, broken), self._pending = self._pending, None
            if broken.read()[0]:
                self._report(trainer, record, self.in_a_row + 1)

    def state_dict(self) -> dict[str, Any]:
        uncounted = self._pending is not None and self._pending[1].read()[0]
        return {"skipped": self.skipped + int(uncounted)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _check_pending(self, trainer: Trainer) -> None:
        """Count the previous step if it was skipped; all ranks have the same gradients and agree."""
        if self._pending is None:
            return
        (record, broken), self._pending = self._pending, None
        if broken.read()[0]:
            self._count(trainer, record)
        else:
            self.in_a_row = 0

    def _count(self, trainer: Trainer, record: StepRecord) -> None:
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        if self.in_a_row >= self.limit:
            raise UserError(self._describe_divergence(trainer, record))
        self._report(trainer, record, self.in_a_row)

    def _report(self, trainer: Trainer, record: StepRecord, in_a_row: int) -> None:
        if trainer.is_global_zero:
            report(
                f"step {record.step} is skipped: its loss or gradient is not finite "
                f"({in_a_row} in a row; {self.limit} end the run)"
            )

    def _record_losses(self, trainer: Trainer, module: LightningModule) -> None:
        if (losses := getattr(module, "last_losses", None)) is not None:
            self._batches.append((trainer.fit_loop.batch_idx, *losses))

    def _has_nonfinite_loss(self, trainer: Trainer) -> bool:
        """Return whether any rank has a loss that is not finite; all ranks have the same gradients, so all call."""
        mine = any(not bool(losses.isfinite().all()) for _, _, losses in self._batches)
        return trainer.strategy.reduce_boolean_decision(mine, all=False)

    def _describe_divergence(self, trainer: Trainer, record: StepRecord) -> str:
        text = (
            f"training has diverged: {self.in_a_row} steps in a row had a loss or gradient that is not finite, the "
            f"last of them step {record.step} with learning rate {', '.join(f'{rate:g}' for rate in record.rates)}"
        )
        data = trainer.datamodule  # type: ignore[attr-defined]
        for batch, t, losses in record.batches:
            bad = ~losses.isfinite()
            which = (bad if bad.any() else torch.ones_like(bad)).nonzero().flatten().tolist()
            numbers = data.list_batch_indices(batch) if isinstance(data, ImageDataModule) else list(range(len(t)))
            pairs = ", ".join(f"{numbers[index]} at t={int(t[index])}" for index in which[:8])
            what = "the loss of images" if bad.any() else "only the gradient, of a batch of images"
            text += f"; on rank {trainer.global_rank} {what} {pairs}{', ...' if len(which) > 8 else ''}"
        return f"{text}. The checkpoints hold the weights from before. Lower the learning rate, or clip the gradients"
