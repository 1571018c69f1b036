"""Averages of the weights from which one of any length can be made after training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks.interval import Interval
from lightning_ddpm.models.power_average import get_share, solve_exponent
from lightning_ddpm.models.snapshots import DIGITS, list_snapshots, remove_later, write_snapshot
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_free_space, check_writable
from lightning_ddpm.utils.torch_internals import interpolate_all

KEY = "post_hoc_ema"
"""Key of the averages in a checkpoint."""


class PostHocEMA(Callback):
    """Averages the weights over two shares of training, and writes snapshots of them at an interval and at the end.

    `reconstruct` makes the average of any length from the snapshots, and `tune` finds the best one: Karras et al. 2024
    (arXiv:2312.02696), section 3. It changes neither training nor what is evaluated meanwhile, which ``EMA`` does.
    Each length takes as much memory as the weights, and so do a snapshot and its part of a checkpoint.

    Args:
        every_n_steps: interval in optimizer steps. Shorter lengths need more snapshots: `reconstruct` states the error.
        sigma_rels: the lengths, two or more: standard deviations as shares of the training so far.
    """

    def __init__(self, every_n_steps: int, sigma_rels: Sequence[float] = (0.05, 0.1)) -> None:
        self.sigma_rels = tuple(dict.fromkeys(round(each, DIGITS) for each in sigma_rels))
        if len(self.sigma_rels) < 2:
            raise UserError(
                f"PostHocEMA needs at least two different sigma_rels, got {list(sigma_rels)}; Karras et al. keep 0.05 "
                "and 0.1"
            )
        self.interval = Interval(every_n_steps, None)
        self.exponents = [solve_exponent(each) for each in self.sigma_rels]
        self._averages: dict[float, dict[str, Tensor]] = {}
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._averages = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder without enough free space, before the first step."""
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.max_steps < 0:  # type: ignore[attr-defined]
            return
        folder, every = Path(trainer.default_root_dir), self.interval.steps or 1
        check_writable(folder)
        size = sum(each.numel() * each.element_size() for each in pl_module.parameters())
        left = -(-trainer.max_steps // every) * len(self.sigma_rels) - len(list_snapshots(folder))
        check_free_space(folder, size, size * max(left, 0), "snapshot")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Place the averages on the device of the weights, in their memory layout."""
        self.interval.start(trainer)
        self._step = trainer.global_step
        if self._step and not self._averages:
            raise UserError(
                f"PostHocEMA averages from the first step on, and the run is resumed after step {self._step} without "
                "its averages; remove the callback, or start another run with --trainer.default_root_dir FOLDER"
            )
        for each in self.sigma_rels:
            kept = self._averages.get(each)
            self._averages[each] = {
                name: weight.detach().clone() if kept is None else torch.empty_like(weight.detach()).copy_(kept[name])
                for name, weight in pl_module.named_parameters()
            }
        if self._writes(trainer):
            remove_later(Path(trainer.default_root_dir), self._step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._update(trainer, pl_module)
        if self.interval.is_due_after_batch(trainer):
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        written = [each.step for each in list_snapshots(Path(trainer.default_root_dir))]
        if self._step and self._step not in written:
            self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._averages:
            checkpoint[KEY] = [
                {"sigma_rel": each, "weights": dict(average)} for each, average in self._averages.items()
            ]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or KEY not in checkpoint:
            return
        self._averages = {each["sigma_rel"]: each["weights"] for each in checkpoint[KEY]}
        if tuple(self._averages) != self.sigma_rels:
            raise UserError(
                f"PostHocEMA has sigma_rels {list(self.sigma_rels)}, and the run that is resumed {list(self._averages)}"
                "; restore them, or start another run with --trainer.default_root_dir FOLDER"
            )

    @torch.no_grad()
    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        """Average the weights of the last step, once."""
        if trainer.global_step == self._step:
            return  # the step accumulates gradients of further batches
        self._step = trainer.global_step
        weights: list[Tensor] = list(module.parameters())
        for exponent, average in zip(self.exponents, self._averages.values(), strict=True):
            interpolate_all(list(average.values()), weights, get_share(self._step, exponent))

    def _writes(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _write(self, trainer: Trainer) -> None:
        """Write the averages on the first rank; the others have the same."""
        if not self._writes(trainer):
            return
        for each, average in self._averages.items():
            try:
                write_snapshot(Path(trainer.default_root_dir), self._step, each, average)
            except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
                report(f"cannot write a snapshot of averaged weights ({first_line(error)}); the run goes on without it")
