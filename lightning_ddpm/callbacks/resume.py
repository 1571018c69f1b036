"""Resumes an interrupted run, under a config that may have changed."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks.checkpoints import Checkpoints
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.optimizer import normalize_optimizer_state
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.lightning_internals import set_batches_done
from lightning_ddpm.utils.signals import hold_signals, release_signals

COMPARED = ("seed_everything", "trainer", "model", "data")
FIXED = (
    "class_path",
    "network",
    "schedule",
    "parameterization",
    "values",
    "optimizer.class_path",
    "lr_scheduler.class_path",
)
"""Parts of the config that weights, optimizer state and random numbers depend on; dropout is an exception."""
UNSET = "not set"
"""The value of an option that one of two configs does not have, such as one that is newer than a checkpoint."""
NOTHING = (None, UNSET)
LEARNED = "UncertaintyWeighted"
"""The objective that has weights; the others can be exchanged."""


def compare_configs(config: dict[str, Any], before: dict[str, Any] | None) -> list[tuple[str, Any, Any]]:
    """Return what has changed since the checkpoint's config: (dotted name, before, now); nothing for a new run.

    Raises:
        UserError: something has changed that must not; it names the data's value where the network takes that.
    """
    changes = list(_find_changes(before, {name: config.get(name) for name in COMPARED})) if before else []
    for name, old, new in changes:
        within = name.removeprefix("model.").removeprefix("init_args.")
        fixed = within.startswith(FIXED) and name.startswith("model.") and not name.endswith((".dropout", ".recompute"))
        learned = within.startswith("objective") and LEARNED in f"{old}{new}"
        if ((fixed or name == "seed_everything") and old not in NOTHING) or learned:
            cause, before_, now = _find_cause(changes, name) or (name, old, new)
            raise UserError(
                f"{cause} is {now}, but the checkpoint's run has {before_}, and a run cannot be resumed with another "
                "value; restore it, or start another run with --trainer.default_root_dir FOLDER"
            )
    return changes


def _find_cause(changes: list[tuple[str, Any, Any]], name: str) -> tuple[str, Any, Any] | None:
    """Return the change of the data that a change of the network's channels or size was taken from, if there is one."""
    last = name.rpartition(".")[2]
    if not name.endswith((".network.init_args.channels", ".network.init_args.size")):
        return None
    causes = (f".{last}", ".class_path")
    return next((each for each in changes if each[0].startswith("data.source.") and each[0].endswith(causes)), None)


class Resume(Callback):
    """Puts the config into every checkpoint, and reports what has changed since the one that a run resumes from.

    The optimizer and the learning rate follow the current config: a changed rate is the one that a run with this config
    from its first step on would have. With another batch size or number of devices the run resumes at the same place in
    the order of the images.

    Args:
        config: the current config, complete, as plain data.
        before: the checkpoint's config; ``None`` for a new run.
        list_loggers: returns what loggers need to continue, for the checkpoint.

    Raises:
        UserError: something has changed that must not.
    """

    def __init__(
        self,
        config: dict[str, Any],
        before: dict[str, Any] | None = None,
        list_loggers: Callable[[], list[list[str | None]]] = list,
    ) -> None:
        self.config = {name: config.get(name) for name in COMPARED}
        self.list_loggers = list_loggers
        self.changes = compare_configs(config, before)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            for name, old, new in self.changes:
                report(f"changed: {name} was {old}, is {new}")

    def state_dict(self) -> dict[str, Any]:
        return {"config": self.config, "loggers": self.list_loggers()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the batches of the interrupted epoch in the current batch size."""
        data, state = trainer.datamodule, checkpoint.get("ImageDataModule")  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or not isinstance(data, ImageDataModule) or not state:
            return
        done, accumulate = data.count_batches_done(), trainer.accumulate_grad_batches
        if state["batch"] == [data.batch_size, trainer.world_size] and not done % accumulate:
            return
        if trainer.limit_train_batches != 1.0 or done % accumulate:
            raise UserError(
                f"the checkpoint's run has batches of {state['batch'][0]} images on {state['batch'][1]} devices; a run "
                "cannot be resumed with others under limit_train_batches, nor under accumulate_grad_batches unless "
                "their steps end at the same image; restore the batch size and the devices"
            )
        set_batches_done(checkpoint, done)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizer and its schedule, which the checkpoint restored, the arguments of the current config.

        From here on, before anything is written, a signal waits for the end of the step, if something saves it then.
        """
        if any(isinstance(each, Checkpoints) for each in trainer.callbacks):  # type: ignore[attr-defined]
            hold_signals()
        else:
            release_signals("stopped; nothing is saved, because the config has no Checkpoints callback", None)
        if not any(".optimizer." in name or ".lr_scheduler." in name for name, _, _ in self.changes):
            return
        fresh: Any = pl_module.configure_optimizers()
        scheduler = fresh["lr_scheduler"]["scheduler"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer takes no steps meanwhile
            for _ in range(trainer.global_step):
                scheduler.step()
        optimizer = trainer.optimizers[0]
        for group, new in zip(optimizer.param_groups, fresh["optimizer"].param_groups, strict=True):
            group.update({name: value for name, value in new.items() if name != "params"})
        normalize_optimizer_state(optimizer)
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(scheduler.state_dict())


def _find_changes(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs between two configs: (dotted name, before, now), with ``UNSET`` for a missing value."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _find_changes(before.get(key, UNSET), now.get(key, UNSET), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _find_changes(old, new, f"{name}[{index}]")
    elif before != now and not (before in NOTHING and now in NOTHING):
        yield name, before, now
