"""An interrupted run goes on, under a config that may have changed."""

import warnings
from collections.abc import Iterator
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.optimizer import normalize_optimizer_state
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError

COMPARED = ("seed_everything", "trainer", "model", "data")
FIXED = ("class_path", "network", "schedule", "parameterization", "optimizer.class_path", "lr_scheduler.class_path")
"""What makes the weights, the optimizer's state and the random numbers mean what they mean; dropout does not."""


class Resume(Callback):
    """Puts the config into every checkpoint, and says what is another than in the one that a run goes on from.

    The optimizer and the learning rate follow the config of now: a changed rate is what a run with that config from its
    first step on would have. Another batch size or number of devices goes on at the same place of the images' order.

    Args:
        config: of now, complete, as plain data.
        before: of the checkpoint; ``None`` for a new run.

    Raises:
        UserError: something has changed that cannot.
    """

    def __init__(self, config: dict[str, Any], before: dict[str, Any] | None = None) -> None:
        self.config = {name: config.get(name) for name in COMPARED}
        self.changes = list(_changes(before, self.config)) if before else []
        for name, old, new in self.changes:
            within = name.removeprefix("model.").removeprefix("init_args.")
            fixed = within.startswith(FIXED) and name.startswith("model.") and not name.endswith(".dropout")
            if (fixed or name == "seed_everything") and old is not None:
                raise UserError(
                    f"{name} is {new} and the checkpoint's run has {old}: a run cannot go on with another; give it "
                    "back, or start another run with --trainer.default_root_dir FOLDER"
                )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            for name, old, new in self.changes:
                report(f"changed: {name} was {old}, is {new}")

    def state_dict(self) -> dict[str, Any]:
        return {"config": self.config}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the batches of the interrupted epoch in the size that they have now."""
        data, state = trainer.datamodule, checkpoint.get("ImageDataModule")  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or not isinstance(data, ImageDataModule) or not state:
            return
        if state["batch"] == [data.batch_size, trainer.world_size]:
            return
        done, accumulate = data.count_batches_done(), trainer.accumulate_grad_batches
        if trainer.limit_train_batches != 1.0 or done % accumulate:
            raise UserError(
                f"the checkpoint's run has batches of {state['batch'][0]} images on {state['batch'][1]} devices; "
                "others cannot go on from there with limit_train_batches, or with accumulate_grad_batches unless they "
                "end where its steps do; give it its batches back"
            )
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if progress["is_last_batch"]:
            done = 10**9  # the epoch is over, however many batches it has now
        shift = done - progress["current"]["ready"]
        progress["current"] = {name: count + shift for name, count in progress["current"].items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizer and its schedule, which came from the checkpoint, the arguments of the config of now."""
        if not any(".optimizer." in name or ".lr_scheduler." in name for name, _, _ in self.changes):
            return
        fresh: Any = pl_module.configure_optimizers()
        scheduler = fresh["lr_scheduler"]["scheduler"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer makes no steps meanwhile
            for _ in range(trainer.global_step):
                scheduler.step()
        optimizer = trainer.optimizers[0]
        for group, new in zip(optimizer.param_groups, fresh["optimizer"].param_groups, strict=True):
            group.update({name: value for name, value in new.items() if name != "params"})
        normalize_optimizer_state(optimizer)
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(scheduler.state_dict())


def _changes(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two configs: (dotted name, before, now), ``None`` where there was or is nothing."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{name}[{index}]")
    elif before != now:
        yield name, before, now
