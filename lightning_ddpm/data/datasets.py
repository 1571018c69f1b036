"""Images in memory or behind a reader, as uint8."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ddpm.console import progress
from lightning_ddpm.errors import UserError
from lightning_ddpm.images import decode

MEMORY = 2**30
"""Decoded sets of up to this many bytes are kept in memory."""

Batch = tuple[Tensor, Tensor]
"""Images (b, c, h, w) and labels (b,) int64, -1 where there is none."""


class ImageDataset(Dataset[tuple[Tensor, int]], ABC):
    """Images of one shape, uint8, with labels (-1 where there is none).

    Attributes:
        fingerprint: names the very images, for caches of what was computed from them.
    """

    fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images and labels at these indices, as a batch: what a DataLoader calls."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])


class MemoryDataset(ImageDataset):
    """A decoded set in memory.

    Args:
        images: (n, c, h, w) uint8.
        labels: (n,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels.long()
        self.fingerprint = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


class FileDataset(ImageDataset):
    """Pictures decoded when asked for.

    Args:
        names: what each picture is called in errors.
        read: opens the picture at an index.
        labels: (n,) int64.
        channels, size: what every picture is turned into.
        state: changes when the pictures do, for the fingerprint.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], Image.Image],
        labels: Tensor,
        channels: int,
        size: int,
        state: str,
    ) -> None:
        self.names, self.read, self.labels = names, read, labels.long()
        self.channels, self.size = channels, size
        listing = "\n".join([f"{channels}x{size}", state, *names])
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.stack([self._decode(index) for index in indices]), self.labels[torch.as_tensor(indices)]

    def _decode(self, index: int) -> Tensor:
        try:
            with self.read(index) as image:
                return decode(image, self.channels, self.size)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.names[index]} cannot be used: {error}") from error

    def kept(self, what: str) -> ImageDataset:
        """This set decoded into memory if it is small enough, else itself."""
        if len(self) * self.channels * self.size**2 > MEMORY:
            return self
        chunks = [range(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        read = ((len(chunk), self.__getitems__(chunk)) for chunk in chunks)
        images = torch.cat([batch[0] for batch in progress(read, len(self), f"reading {what}", show=len(self) > 5000)])
        return MemoryDataset(images, self.labels)
