"""Logs the learning rate."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils.lightning_internals import is_logging_step


class LearningRate(Callback):
    """Logs ``train/lr``, the learning rate of the step; ``train/lr_group1`` ... where parameter groups differ."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not is_logging_step(trainer):
            return
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = rates[:1] if len(set(rates)) == 1 else rates
        names = ["train/lr"] if len(rates) == 1 else [f"train/lr_group{i}" for i in range(1, len(rates) + 1)]
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(names, rates, strict=True)), step=trainer.global_step)  # counted from 0
