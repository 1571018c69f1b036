"""The checkpoints of a run, and its stop by a signal."""

import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from lightning_ddpm.callbacks.ema import EMA
from lightning_ddpm.callbacks.evaluation import Evaluation
from lightning_ddpm.callbacks.interval import Interval
from lightning_ddpm.callbacks.run_logger import get_writers
from lightning_ddpm.metrics.suite import is_higher_better
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.models.optimizer import DeferredRead
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_free_space, check_writable

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM, torchrun and cloud machines send before they end a process."""


class Checkpoints(Checkpoint):
    """``last.ckpt``, every so many steps or minutes and at the end, and ``best.ckpt``, in the run's folder.

    The best is judged the moment its figure is logged, on the very weights that the figure is of; NaN is never best.
    SIGTERM or SIGUSR1 to any rank makes all of them save after the step they are in, or of several ranks the next, and
    exit with status 0.

    Attributes:
        best: the figure of best.ckpt, in the checkpoint too; infinite before there is one.

    Args:
        every_n_steps: of the optimizer, for last.ckpt.
        monitor: the figure, such as ``val/fid``; the lowest is best, but of precision, recall and scores the highest;
            ``null`` for last.ckpt alone.
        every_n_minutes: likewise for last.ckpt, by the first rank's clock; one of the two, or both.
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
        self._sign = -1 if monitor and is_higher_better(monitor.rpartition("/")[2]) else 1
        self.best = self._sign * math.inf
        self.signal: signal.Signals | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder that has no room, before the first step."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir)
        check_writable(folder)
        for left in folder.glob(".*.ckpt.*"):  # by a process that was killed while it wrote
            left.unlink()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        weights = sum(each.numel() * each.element_size() for each in pl_module.state_dict().values())
        # Adam keeps two numbers a weight, and EMA one.
        size = weights * (4 if any(isinstance(each, EMA) for each in callbacks) else 3)
        there = sum(each.stat().st_size for each in folder.glob("*.ckpt"))
        kept = 4 if self.monitor else 3  # the last two, the best, and the one that is being written
        check_free_space(folder, size, max(kept * size - there, size))

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        if self.interval:
            self.interval.start(trainer)
        self._step, self._saved, self._after_validation = trainer.global_step, -1, False
        self._saved_at = time.monotonic()
        self._heard: tuple[int, DeferredRead] | None = None
        self._stopping = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, Evaluation) and each.evaluated == trainer.global_step for each in callbacks):
            self._keep_best(trainer)  # not after every step: reading the figure waits for the device
        if trainer.global_step == self._step:
            return  # a part of a step whose gradients are accumulated
        self._step = trainer.global_step
        stop, late = self._agreed(trainer)
        self._stopping = stop
        due = self.interval is not None and self.interval.after_batch(trainer)
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if not (stop or late or due or ends):
            return
        loop = trainer.fit_loop
        # A validation that follows belongs to this step: a checkpoint from before it would go on without it.
        self._after_validation = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        if stop or not self._after_validation:
            trainer._logger_connector.update_train_step_metrics()  # else this step's would be lost with the process
            self._save(trainer, "last")
        if stop and not self._after_validation:
            self._stop(trainer, stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep_best(trainer)
            if self._after_validation:
                self._after_validation = False
                self._save(trainer, "last")
                if stop := self._stopping or self._agreed(trainer)[0]:
                    self._stop(trainer, stop)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saved != trainer.global_step:
            self._save(trainer, "last")
        self._require_saved(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _keep_best(self, trainer: Trainer) -> None:
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is not None and self._sign * float(value) < self._sign * self.best:
            self.best = float(value)
            self._save(trainer, "best")

    def _save(self, trainer: Trainer, name: str) -> None:
        for writer in get_writers(trainer):
            writer.flush()  # the curves up to here outlive the process, as the checkpoint does
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{name}.ckpt", weights_only=False)
        if name == "last":
            self._saved, self._saved_at = trainer.global_step, time.monotonic()

    def _listen(self) -> None:
        """Take the signals over from Lightning, whose handlers talk to other ranks in the middle of a step."""
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                signal.signal(each, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)

    def _agreed(self, trainer: Trainer) -> tuple[int, bool]:
        """The signal that some rank has had, or 0; and whether the first rank's clock says that it is time to save.

        Of several ranks, as it was when this was last asked: so nothing waits until all have got here.
        """
        late = trainer.is_global_zero and time.monotonic() - self._saved_at >= self.seconds
        if trainer.world_size == 1:
            return int(self.signal or 0), late
        mine = [torch.full((), int(each), device=trainer.strategy.root_device) for each in (self.signal or 0, late)]
        heard = torch.stack(mine)
        torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX)
        before, self._heard = self._heard, (trainer.global_step, DeferredRead(heard))
        if before is None:
            return 0, False
        step, answer = before
        number, was_late = answer.read()
        return number, bool(was_late) and self._saved < step

    def _require_saved(self, trainer: Trainer) -> None:
        io = trainer.strategy.checkpoint_io
        if isinstance(io, DurableCheckpointIO) and io.failed:
            raise UserError(
                f"the last checkpoint could not be written ({first_line(io.failed)}); make room and go on from the one "
                "before by --ckpt_path last"
            )

    def _stop(self, trainer: Trainer, number: int) -> None:
        self._require_saved(trainer)
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            report(f"{name}: stopped after step {trainer.global_step}; go on with --ckpt_path last")
        raise SystemExit(0)
