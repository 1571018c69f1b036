"""Lays out the network's weights for convolutions in channels-last order."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class ChannelsLast(Callback):
    """Stores the network's weights in ``torch.channels_last``, so that convolutions keep channels adjacent in memory.

    Results are the same up to rounding, except for which activations dropout drops, and checkpoints are the same. It is
    faster on some processors and GPUs, and not on others.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.get_submodule("network").to(memory_format=torch.channels_last)
