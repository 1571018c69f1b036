"""Writes the checkpoints of a run, and stops it on a signal."""

import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from lightning_ddpm.callbacks.interval import Interval, PeriodicCallback
from lightning_ddpm.callbacks.post_hoc_ema import PostHocEMA
from lightning_ddpm.callbacks.run_logger import get_writers
from lightning_ddpm.callbacks.trainer_access import find_average, find_evaluations
from lightning_ddpm.metrics.suite import is_higher_better
from lightning_ddpm.models.checkpoint import finish_writing
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.models.optimizer import DeferredRead
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_free_space, check_writable, remove_leftovers
from lightning_ddpm.utils.lightning_internals import is_validation_next, log_step_metrics
from lightning_ddpm.utils.signals import get_signal, hold_signals, note_signals, release_signals


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` at an interval and at the end, and ``best.ckpt``, in the run's folder.

    Where both are due at the same moment, one file is written and the other name is a hard link to it.

    The metric is compared at the moment it is logged, so that best.ckpt holds the weights that were evaluated; NaN is
    never best. SIGTERM, SIGUSR1 or Ctrl-C to any rank makes all ranks save after the current step, or with several
    ranks after the next one, and exit with status 0. An evaluation that a signal interrupts is done again, with the
    same weights, when the run is resumed.

    Attributes:
        best: the metric of best.ckpt, also kept in the checkpoints; infinite before there is one.

    Args:
        every_n_steps: interval of last.ckpt in optimizer steps.
        monitor: the metric, such as ``val/fid``. The lowest value is best, except for precision, recall, scores,
            accuracy, PSNR and SSIM, where the highest is; ``null`` for last.ckpt alone.
        every_n_minutes: interval of last.ckpt by the first rank's clock; give one of the two, or both.
    """

    def __init__(
        self, every_n_steps: int | None = None, monitor: str | None = None, every_n_minutes: float | None = None
    ) -> None:
        if every_n_steps is None and every_n_minutes is None:
            raise UserError("Checkpoints needs every_n_steps or every_n_minutes, got neither")
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise UserError(f"every_n_minutes must be more than 0, got {every_n_minutes}")
        self.interval = Interval(every_n_steps, None) if every_n_steps is not None else None
        self.seconds = math.inf if every_n_minutes is None else 60 * every_n_minutes
        self.monitor = monitor
        self._sign = -1 if monitor and is_higher_better(monitor.split("/", 1)[-1]) else 1
        self.best = self._sign * math.inf
        self._periodic: list[PeriodicCallback] = []
        self._unfinished: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder without enough free space, before the first step."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir)
        check_writable(folder)
        remove_leftovers(folder)
        finish_writing(folder / "last.ckpt")
        weights = sum(each.numel() * each.element_size() for each in pl_module.state_dict().values())
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        lengths = sum(len(each.sigma_rels) for each in callbacks if isinstance(each, PostHocEMA))
        size = weights * (3 + bool(find_average(trainer)) + lengths)  # Adam has two numbers a weight, an average one
        files = [each.stat() for each in folder.glob("*.ckpt")]
        existing = sum({(each.st_dev, each.st_ino): each.st_size for each in files}.values())  # links count once
        kept = 4 if self.monitor else 3  # the last two, the best, and the one that is being written
        check_free_space(folder, size, max(kept * size - existing, size))

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which communicate with other ranks in the middle of a step."""
        note_signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hold_signals()
        if self.interval:
            self.interval.start(trainer)
        self._step, self._saved, self._after_validation = trainer.global_step, -1, False
        self._saved_at = time.monotonic()
        self._requests: tuple[int, DeferredRead] | None = None
        self._stopping = 0
        self._evaluations = find_evaluations(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._periodic = [each for each in callbacks if isinstance(each, PeriodicCallback)]
        for index in self._unfinished:
            if index < len(self._periodic) and self._periodic[index].interval:
                self._periodic[index].run_at_interval(trainer, pl_module)
        self._keep_evaluated(trainer)
        if stop := self._get_interruption():
            self._stop(trainer, stop)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        is_best = self._keep_evaluated(trainer)
        if trainer.global_step == self._step:
            return  # the step accumulates gradients of further batches
        self._step = trainer.global_step
        stop, late = self._exchange_requests(trainer)
        self._stopping = stop = self._get_interruption() or stop
        due = self.interval is not None and self.interval.is_due_after_batch(trainer)
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if not (stop or late or due or ends):
            return
        # A validation that follows belongs to this step: a run resumed from before it would omit it.
        self._after_validation = is_validation_next(trainer)
        if stop or not self._after_validation:
            log_step_metrics(trainer)  # else they would be lost with the process
            self._save_last(trainer, is_best)
        if stop and not self._after_validation:
            self._stop(trainer, stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            is_best = self._keep_best(trainer)
            if self._after_validation:
                self._after_validation = False
                self._save_last(trainer, is_best)
                if stop := self._stopping or self._exchange_requests(trainer)[0]:
                    self._stop(trainer, stop)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved != trainer.global_step:
            self._save_last(trainer)
        self._require_saved(trainer)
        release_signals("stopped after the end of training; to measure what is missing, resume with --ckpt_path last")

    def state_dict(self) -> dict[str, Any]:
        unfinished = [index for index, each in enumerate(self._periodic) if each.interrupted]
        return {"best": self.best, "unfinished": unfinished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._unfinished = state_dict["best"], state_dict.get("unfinished", [])

    def _get_interruption(self) -> int:
        """Return the signal that has interrupted the work of a callback after this step, on all ranks, or 0."""
        return max((each.interrupted for each in self._periodic), default=0)

    def _keep_evaluated(self, trainer: Trainer) -> bool:
        """Compare the metric if it was evaluated after this step; reading it waits for the device."""
        evaluated = any(each.evaluated_step == trainer.global_step for each in self._evaluations)
        return evaluated and self._keep_best(trainer)

    def _keep_best(self, trainer: Trainer) -> bool:
        """Write best.ckpt if the metric is the best so far; return whether it is."""
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is None or not self._sign * float(value) < self._sign * self.best:  # NaN is never best
            return False
        self.best = float(value)
        self._save(trainer, "best")
        return True

    def _save_last(self, trainer: Trainer, is_best: bool = False) -> None:
        """Write last.ckpt, or link it to the best.ckpt that was written in the same hook, so that they are equal."""
        if not (is_best and self._link_last(trainer)):
            self._save(trainer, "last")
        self._saved, self._saved_at = trainer.global_step, time.monotonic()

    def _link_last(self, trainer: Trainer) -> bool:
        """Return whether last.ckpt is now a link to best.ckpt; every rank must call."""
        io, folder, linked = trainer.strategy.checkpoint_io, Path(trainer.default_root_dir), False
        if trainer.is_global_zero and isinstance(io, DurableCheckpointIO) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            linked = io.link_checkpoint(folder / "last.ckpt", folder / "best.ckpt")
        return bool(trainer.strategy.broadcast(linked))

    def _save(self, trainer: Trainer, name: str) -> None:
        for writer in get_writers(trainer):
            writer.flush()  # so that the curves survive the process, as the checkpoint does
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{name}.ckpt", weights_only=False)

    def _exchange_requests(self, trainer: Trainer) -> tuple[int, bool]:
        """Return the signal that any rank has received, or 0, and whether by the first rank's clock a save is due.

        With several ranks it returns what the previous call exchanged, so that no rank waits for the others here.
        """
        late = trainer.is_global_zero and time.monotonic() - self._saved_at >= self.seconds
        if trainer.world_size == 1:
            return int(get_signal() or 0), late
        mine = [torch.full((), int(each), device=trainer.strategy.root_device) for each in (get_signal() or 0, late)]
        together = torch.stack(mine)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        previous, self._requests = self._requests, (trainer.global_step, DeferredRead(together))
        if previous is None:
            return 0, False
        step, requests = previous
        number, was_late = requests.read()
        return number, bool(was_late) and self._saved < step

    def _require_saved(self, trainer: Trainer) -> None:
        io = trainer.strategy.checkpoint_io
        if isinstance(io, DurableCheckpointIO) and io.failed:
            raise UserError(
                f"the last checkpoint could not be written ({first_line(io.failed)}); free some space and resume from "
                "the previous one with --ckpt_path last"
            )

    def _stop(self, trainer: Trainer, number: int) -> None:
        self._require_saved(trainer)
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            report(f"{name}: stopped after step {trainer.global_step}; resume with --ckpt_path last")
        raise SystemExit(0)
