"""Limits what the ranks exchange in a training step."""

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils.lightning_internals import set_ddp_defaults, skip_signal_broadcast


class RankExchange(Callback):
    """Lets the ranks exchange gradients and, for Checkpoints, requests to save or stop; nothing that a step waits for.

    By default Lightning broadcasts whether SIGTERM was received and reads the answer before every batch, and DDP
    broadcasts all buffers before every forward pass.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        set_ddp_defaults(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        skip_signal_broadcast(trainer)
