"""Images of another source with a border, so that their size can be halved more often."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.datasets import Batch, FileDataset, ImageDataset, MemoryDataset
from lightning_ddpm.data.sources import ImageSource, Split
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import make_cache_key
from lightning_ddpm.utils.image_size import ImageSize, format_size, get_sides, shorten_size


class Padded(ImageSource):
    """The images of another source, each in the center of a larger one, such as MNIST's 28x28 in 32x32.

    The border has the lowest value of the range, which is black for images of 8 bits, or the mean of unbounded values.
    Samples, metrics and likelihoods are those of the larger images. To keep them at the images' own size, use
    ``pad_to_multiple`` of :class:`~lightning_ddpm.networks.UNet`, which pads inside the network.

    Args:
        source: the other source.
        size: height and width of the larger images.
    """

    def __init__(self, source: ImageSource, size: ImageSize) -> None:
        self.source, self.size = source, size
        self.channels = getattr(source, "channels", 0)  # those of arrays are known after inspect

    def inspect(self, root: Path) -> None:
        self.source.inspect(root)
        self.channels, self.values = self.source.channels, self.source.values
        self.condition, self.condition_values = self.source.condition, self.source.condition_values
        if any(inner > outer for inner, outer in zip(get_sides(self.source.size), get_sides(self.size), strict=True)):
            raise UserError(
                f"images of {format_size(self.source.size)} cannot be padded to {format_size(self.size)}; raise "
                "data.source.size"
            )
        if self.condition.image is not None:
            raise UserError("images that are conditioned on other images cannot be padded by data.source Padded")

    def prepare(self, root: Path) -> None:
        self.source.prepare(root)

    def open(self, root: Path, split: Split) -> ImageDataset:
        data = self.source.open(root, split)
        return data.map_images(self._pad) if isinstance(data, ConditionedDataset) else self._pad(data)

    def _pad(self, data: ImageDataset) -> ImageDataset:
        if type(data) is not MemoryDataset:
            return PaddedDataset(data, self.size, self.values)
        padded = MemoryDataset(pad_images(data.images, self.size, self.values), data.labels, self.values)
        padded.names = data.names
        return padded

    def image_files(self, root: Path) -> list[FileDataset]:
        return self.source.image_files(root)

    def class_names(self, root: Path) -> list[str]:
        return self.source.class_names(root)


class PaddedDataset(ImageDataset):
    """The images of another dataset with a border.

    Args:
        data: the dataset.
        size: height and width of the larger images.
        values: type and range of the values.
    """

    def __init__(self, data: ImageDataset, size: ImageSize, values: ValueRange) -> None:
        self.data, self.size, self.values = data, size, values
        self.labels, self.names = data.labels, data.names
        self.blocks = data.blocks
        self.fingerprint = make_cache_key(f"{data.fingerprint} padded to {shorten_size(size)}")

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        images, labels = self.data.__getitems__(indices)
        return pad_images(images, self.size, self.values), labels

    def map_images(self, function: Callable[[ImageDataset], ImageDataset]) -> "PaddedDataset":
        """Return the dataset with the one inside the border replaced, as by its decoded images."""
        return PaddedDataset(function(self.data), self.size, self.values)


def pad_images(images: Tensor, size: ImageSize, values: ValueRange) -> Tensor:
    """Return images (n, c, h, w) in the centers of larger ones."""
    height, width = (outer - inner for outer, inner in zip(get_sides(size), images.shape[-2:], strict=True))
    sides = (width // 2, width - width // 2, height // 2, height - height // 2)
    border = values.to_data(torch.full((1, images.shape[1], 1, 1), -1.0 if values.bounded else 0.0))
    inside = pad(torch.ones(images.shape[-2:], dtype=torch.bool), sides)
    return torch.where(inside, pad(images, sides), border)
