"""Lays out the weights for convolutions in channels-last order."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class ChannelsLast(Callback):
    """Stores the weights in ``torch.channels_last``, so that convolutions keep channels adjacent in memory.

    These are the network's, or all weights of a module without one. Results are the same up to rounding, except for
    which activations dropout drops, and checkpoints are the same. It is faster on some processors and GPUs, and not on
    others.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        getattr(pl_module, "network", pl_module).to(memory_format=torch.channels_last)
