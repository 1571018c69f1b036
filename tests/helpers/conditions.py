"""Digits with every kind of condition, and networks that take them."""

from pathlib import Path
from typing import Any

import torch
from helpers.tiny import TINY
from torch import Tensor, nn

from lightning_ddpm.data import ConditionedDataset, Digits
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.networks import ConcatenatedImage, DiT, MultiLabelEmbedding, UNet, VectorEmbedding
from lightning_ddpm.utils.condition import ConditionFormat

EVERYTHING = ConditionFormat(("ink", "height"), ("even", "small", "round"), (1, 4, 4))


def halve(images: Tensor) -> Tensor:
    """Return the means of blocks of 2x2 pixels."""
    return nn.functional.avg_pool2d(images.float(), 2).round().to(images.dtype)


class DescribedDigits(Digits):
    """Digits with their mean, the height of their ink, three classes of the digit, and themselves at 4x4 pixels."""

    condition = EVERYTHING

    def open(self, root: Path, split: Any) -> ImageDataset:
        digits = super().open(root, split)
        images, label = digits.__getitems__(range(len(digits)))
        assert isinstance(label, Tensor)
        rows = (images[:, 0].float().amax(2) > 100).sum(1).float()
        vector = torch.stack([images.float().mean((1, 2, 3)), rows], dim=1)
        multilabel = torch.stack([label % 2 == 0, label < 5, (label == 0) | (label == 8)], dim=1)
        return ConditionedDataset(digits, vector, multilabel, derive=halve)


def make_embeddings() -> list[Any]:
    return [VectorEmbedding(EVERYTHING.vector), MultiLabelEmbedding(EVERYTHING.multilabel), ConcatenatedImage(1, 4)]


def make_network(kind: str, classes: int = 10) -> nn.Module:
    """Return a small network with every kind of condition, none of whose weights is near zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "UNet":
            network: nn.Module = UNet(**TINY, classes=classes, conditions=make_embeddings())
        else:
            small: dict[str, Any] = {"channels": 1, "size": 8, "width": 16, "depth": 2, "heads": 2, "class_tokens": 1}
            network = DiT(**small, class_tokens_from=1, classes=classes, conditions=make_embeddings())
        for each in network.parameters():
            each.data += 0.05 * torch.randn(each.shape)
    return network
