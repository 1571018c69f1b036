"""Summarises a run at its start and end."""

from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.devices import name_device
from lightning_ddpm.utils.threads import describe_threads


class RunSummary(Callback):
    """Prints the run's folder, device, data, model and length before the first step, and at the end how to sample."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        steps = trainer.estimated_stepping_batches
        if not trainer.is_global_zero:
            return
        device = pl_module.device
        name = name_device(device) + (f", {describe_threads()}" if device.type == "cpu" else "")
        batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        per_epoch = -(-len(data.train_dataloader()) // trainer.accumulate_grad_batches)
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        report(
            f"run: {Path(trainer.default_root_dir).absolute()} "
            f"(checkpoints, config.yaml, images; tensorboard --logdir {trainer.default_root_dir})\n"
            f"device: {trainer.world_size} x {name}, precision {trainer.precision}\n"
            f"images: {len(data.train)} of {data.channels}x{data.size}x{data.size}, {len(data.held_out)} held out\n"
            f"model: {parameters:,} parameters\n"
            f"training: {steps:g} steps of {batch} images, {per_epoch} steps per epoch"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        last = Path(trainer.default_root_dir) / "last.ckpt"
        # Not in on_fit_end, in which callbacks may evaluate.
        if stage == "fit" and trainer.is_global_zero and last.is_file():
            report(f"done: python -m lightning_ddpm sample --ckpt {last} --n 64 --out samples")
