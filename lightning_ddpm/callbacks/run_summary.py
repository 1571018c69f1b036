"""Summarises a run at its start and end."""

import shlex
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.models.trusted_imports import list_modules_to_trust
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.devices import name_device
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.lightning_internals import get_validation_interval
from lightning_ddpm.utils.threads import describe_threads


class RunSummary(Callback):
    """Prints the run's folder, device, data, model and length before the first step, and at the end how to sample."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        batches = _count_batches(trainer, len(data.train_dataloader()))
        _check_validation_interval(trainer, batches)
        steps = trainer.estimated_stepping_batches
        if not trainer.is_global_zero:
            return
        device = pl_module.device
        name = name_device(device) + (f", {describe_threads()}" if device.type == "cpu" else "")
        per_epoch = -(-batches // trainer.accumulate_grad_batches)
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        report(
            f"run: {Path(trainer.default_root_dir).absolute()} "
            f"(checkpoints, config.yaml, images; tensorboard --logdir {trainer.default_root_dir})\n"
            f"device: {trainer.world_size} x {name}, precision {trainer.precision}\n"
            f"images: {len(data.train)} of {'x'.join(map(str, data.image_shape))}, {len(data.held_out)} held out\n"
            f"model: {parameters:,} parameters\n"
            f"training: {steps:g} steps of {data.step_size} images, {per_epoch} steps per epoch{data.describe_step()}"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        last = Path(trainer.default_root_dir) / "last.ckpt"
        # Not in on_fit_end, in which callbacks may evaluate.
        if stage == "fit" and trainer.is_global_zero and last.is_file():
            trust = ",".join(list_modules_to_trust(dict(pl_module.hparams)))
            environment = f"LIGHTNING_DDPM_TRUST={shlex.quote(trust)} " if trust else ""
            command = f"{environment}python -m lightning_ddpm sample --ckpt {shlex.quote(str(last))}"
            report(f"done: {command} --n 64 --out samples")


def _count_batches(trainer: Trainer, batches: int) -> int:
    """Return how many of an epoch's batches are trained on."""
    limit = trainer.limit_train_batches  # overfit_batches sets it, too
    used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if not used:
        name = "overfit_batches" if getattr(trainer, "overfit_batches", 0) else "limit_train_batches"
        raise UserError(
            f"--trainer.{name} {limit:g} of the {batches} batches is less than one; give a number of "
            "batches, or a larger share"
        )
    return used


def _check_validation_interval(trainer: Trainer, batches: int) -> None:
    """Refuse an interval between validations that no epoch reaches.

    Raises:
        UserError: ``val_check_interval`` counts steps within an epoch, and there are fewer.
    """
    interval = get_validation_interval(trainer)
    steps = -(-batches // trainer.accumulate_grad_batches)
    if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > steps:
        raise UserError(
            f"--trainer.val_check_interval {interval} counts within an epoch, which has {steps} steps; set "
            "--trainer.check_val_every_n_epoch null to count across epochs, or lower it"
        )
