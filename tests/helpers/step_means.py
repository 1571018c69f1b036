"""A model whose training has a closed form, and batches of unequal sizes on two ranks."""

from functools import partial
from pathlib import Path

import torch
from helpers.tiny import tiny_model
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.diffusion import Denoiser, Objective
from lightning_ddpm.models.ddpm import DDPM

RATE = 0.5


class Scale(nn.Module):
    """A network of one weight per pixel."""

    channels, size = 1, 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).reshape(1, 8, 8))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.weight * x_t


class ReproduceImage(Objective):
    """The squared error of the network's output for x_0 itself: it depends on no random number."""

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return (denoise.network(x_0, t) - x_0.flip(-1)).square().flatten(1).mean(1)


def scale_model() -> DDPM:
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    optimizer = partial(torch.optim.SGD, lr=RATE)  # unlike a lambda, it can be sent to another process
    return tiny_model(network=Scale(), objective=ReproduceImage(), optimizer=optimizer, lr_scheduler=constant)


class Unequal(LightningDataModule):
    """Batches of these sizes on each rank, of images that are all different."""

    sizes = ((3, 5, 1), (4, 2, 2))

    def batches(self, rank: int) -> list[tuple[Tensor, Tensor]]:
        images = to_float(Digits().open(Path("unused"), "train").__getitems__(range(17))[0])
        parts = torch.split(images, [size for sizes in self.sizes for size in sizes])
        return [(part, torch.full((len(part),), -1)) for part in parts[3 * rank : 3 * rank + 3]]

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(self.batches(self.trainer.global_rank), batch_size=None)
