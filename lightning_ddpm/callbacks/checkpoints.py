"""The two checkpoints of a run."""

import math
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from lightning_ddpm.callbacks.evaluation import Evaluation
from lightning_ddpm.callbacks.interval import Interval
from lightning_ddpm.metrics.figures import greater_is_better


class Checkpoints(Checkpoint):
    """``last.ckpt``, every so many steps and at the end, and ``best.ckpt``, in the run's folder.

    The best is judged the moment its figure is logged, on the very weights that the figure is of; NaN is never best.

    Attributes:
        best: the figure of best.ckpt, in the checkpoint too; infinite before there is one.

    Args:
        every_n_steps: of the optimizer, for last.ckpt.
        monitor: the figure, such as ``val/fid``; the lowest is best, but of precision, recall and scores the highest;
            ``null`` for last.ckpt alone.
    """

    def __init__(self, every_n_steps: int, monitor: str | None = None) -> None:
        self.interval = Interval(every_n_steps, None)
        self.monitor = monitor
        self._sign = -1 if monitor and greater_is_better(monitor.rpartition("/")[2]) else 1
        self.best = self._sign * math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interval.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, Evaluation) and each.evaluated == trainer.global_step for each in callbacks):
            self._keep_best(trainer)  # not after every step: reading the figure waits for the device
        if self.interval.after_batch(trainer):
            self._save(trainer, "last")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep_best(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "last")

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
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{name}.ckpt", weights_only=False)
