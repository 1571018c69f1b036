"""Images in memory or behind a reader, as uint8."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ddpm.data.image_io import DecodedImage, read_image
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import make_cache_key

Batch = tuple[Tensor, Tensor]
"""Images (b, c, h, w) and labels (b,) int64, -1 where there is none."""


class ImageDataset(Dataset[tuple[Tensor, int]], ABC):
    """Images of one shape, uint8, with labels (-1 where there is none).

    Attributes:
        fingerprint: names the very images, for caches of what was computed from them.
        labels: (n,) int64.
    """

    fingerprint: str
    labels: Tensor

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
        images: (n, c, h, w) uint8, in any layout; kept contiguous, for activations would take over a batch's layout.
        labels: (n,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.contiguous(), labels.long()
        self.fingerprint = make_cache_key(self.images.numpy().tobytes())

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


class FileDataset(ImageDataset):
    """Pictures decoded when asked for.

    Args:
        names: what each picture is called in errors.
        file: the picture at an index: its path, or its bytes.
        labels: (n,) int64.
        channels, size: what every picture is turned into.
        state: changes when the pictures do, for the fingerprint.
    """

    def __init__(
        self,
        names: Sequence[str],
        file: Callable[[int], Path | BytesIO],
        labels: Tensor,
        channels: int,
        size: int,
        state: str,
    ) -> None:
        self.names, self.file, self.labels = names, file, labels.long()
        self.channels, self.size = channels, size
        listing = "\n".join([f"{channels}x{size}", state, *names])
        self.fingerprint = make_cache_key(listing)

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.stack([self._pixels(index) for index in indices]), self.labels[torch.as_tensor(indices)]

    def _pixels(self, index: int) -> Tensor:
        try:
            return self.decode(index).pixels
        except UserError as error:
            raise UserError(f"{self.names[index]} cannot be used: {error}") from error

    def decode(self, index: int) -> DecodedImage:
        """The decoded picture, and what its file says of it.

        Raises:
            UserError: it cannot be used; the sentence does not name it.
        """
        return read_image(self.file(index), self.channels, self.size)

    def subset(self, indices: Sequence[int]) -> "FileDataset":
        """Some of the pictures."""
        names, labels = [self.names[index] for index in indices], self.labels[list(indices)]
        return FileDataset(names, lambda i: self.file(indices[i]), labels, self.channels, self.size, self.fingerprint)


def build_path_dataset(
    paths: Sequence[Path], labels: Tensor, channels: int, size: int, file: Callable[[Path], Path] = Path
) -> FileDataset:
    """Pictures in files.

    Args:
        paths: of the pictures.
        labels, channels, size: as :class:`FileDataset`.
        file: the path that is opened in place of one of ``paths``, where opening it is allowed.
    """
    names = [os.fsencode(path).decode(errors="backslashreplace") for path in paths]
    state = " ".join(describe_file_state(path) for path in paths)
    return FileDataset(names, lambda index: file(paths[index]), labels, channels, size, state)


def describe_file_state(path: Path) -> str:
    """What changes when a file does."""
    absolute = os.fsencode(path.absolute()).decode(errors="backslashreplace")
    try:
        stat = path.stat()
    except OSError as error:  # a link to nowhere, for one: reading it says so
        return f"{absolute} {error.strerror}"
    return f"{absolute} {stat.st_size} {stat.st_mtime_ns}"
