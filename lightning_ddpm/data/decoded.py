"""Pictures decoded once: into memory, or, too many for that, into a file that all processes of a machine map."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data.checks import key, read_all
from lightning_ddpm.data.datasets import Batch, FileDataset, ImageDataset, MemoryDataset
from lightning_ddpm.errors import UserError
from lightning_ddpm.files import require_room, require_writable, write_whole

MEMORY = 2**30
"""Decoded sets of up to this many bytes are kept in memory."""


class MappedDataset(ImageDataset):
    """A decoded set in a file: what is asked for is read, and shared with other processes as long as there is room.

    Args:
        path: of an array (n, c, h, w) uint8 in NumPy's format.
        labels: (n,) int64.
        fingerprint: of the pictures that it was made of.
    """

    def __init__(self, path: Path, labels: Tensor, fingerprint: str) -> None:
        self.path, self.labels, self.fingerprint = path, labels.long(), fingerprint
        self.images = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.from_numpy(self.images[np.asarray(indices)]), self.labels[torch.as_tensor(indices)]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return MappedDataset, (self.path, self.labels, self.fingerprint)  # a worker maps the file, and gets no copy


def fits(data: FileDataset) -> bool:
    """Whether a set is small enough to be kept in memory."""
    return _bytes(data) <= MEMORY


def in_memory(data: FileDataset, what: str) -> MemoryDataset:
    """A set, decoded into memory.

    Args:
        data: the set.
        what: its name, for the progress bar.

    Raises:
        UserError: some picture cannot be used (any more).
    """
    images = torch.empty(_shape(data), dtype=torch.uint8)
    for index, pixels in enumerate(_decoded(data, what)):
        images[index] = pixels
    return MemoryDataset(images, data.labels)


def in_file(data: FileDataset, folder: Path, what: str) -> MappedDataset:
    """A set, decoded into a file of the folder unless it lies there already.

    Args:
        data: the set.
        folder: which is made.
        what: the set's name, for the progress bar.

    Raises:
        UserError: some picture cannot be used (any more), or the folder has no room.
    """
    path = folder / f"{key(data)}.npy"
    if not _whole(path, _shape(data)):
        require_writable(folder)
        require_room(folder, _bytes(data), _bytes(data), of="decoded set")

        def write(file: BinaryIO) -> None:
            header = {"descr": "|u1", "fortran_order": False, "shape": _shape(data)}
            np.lib.format.write_array_header_1_0(file, header)
            for pixels in _decoded(data, what):
                file.write(pixels.numpy().tobytes())

        try:
            write_whole(path, write)
        except OSError as error:
            raise UserError(f"the decoded images of {what} cannot be written in {folder}: {error.strerror}") from error
    return MappedDataset(path, data.labels, data.fingerprint)


def _decoded(data: FileDataset, what: str) -> Iterator[Tensor]:
    for each in read_all(data, f"reading {what}", len(data) > 5000):
        if isinstance(each, str):
            raise UserError(each)
        yield each.pixels


def _whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether it is a file of such images."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return bool(images.shape == shape and images.dtype == np.uint8)


def _shape(data: FileDataset) -> tuple[int, int, int, int]:
    return len(data), data.channels, data.size, data.size


def _bytes(data: FileDataset) -> int:
    return int(np.prod(_shape(data), dtype=np.int64))
