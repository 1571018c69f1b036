"""The network's weights, laid out for the kernels that are faster so."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn


class ChannelsLast(Callback):
    """Has convolutions work on images whose channels lie next to each other in memory (torch.channels_last).

    The same numbers up to rounding, but for which activations dropout takes, and the same checkpoints. Faster on some
    processors and GPUs, on others not.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = pl_module.network
        assert isinstance(network, nn.Module)
        network.to(memory_format=torch.channels_last)
