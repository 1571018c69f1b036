"""A dataset too large to keep, and features that are its pixels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ddpm.data import ImageDataset
from lightning_ddpm.metrics import ModuleFeatures


class Big(ImageDataset):
    """Noise of 64x64 pixels, made when it is asked for."""

    fingerprint = "big"

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        pixels = np.random.default_rng(indices[0]).integers(0, 256, (len(indices), 3, 64, 64), dtype=np.uint8)
        return torch.from_numpy(pixels), torch.full((len(indices),), -1)


def pixels_as_they_are(d: int) -> ModuleFeatures:
    return ModuleFeatures(nn.Flatten(), d, "pixels")
