"""Sets of images by number."""

import torch
from torch import Tensor


def stacked(images: dict[int, Tensor]) -> Tensor:
    return torch.stack([images[index] for index in sorted(images)])
