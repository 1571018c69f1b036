"""Decode image files once: into memory, or into a file that all processes of a machine map."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data.datasets import Batch, FileDataset, ImageDataset, MemoryDataset
from lightning_ddpm.data.validation import make_decode_key, read_all
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_free_space, check_writable, write_atomically

MAX_BYTES_IN_MEMORY = 2**30
"""Largest size of a decoded dataset that is kept in memory."""


class MappedDataset(ImageDataset):
    """A dataset of decoded images in a memory-mapped file, whose pages the operating system shares among processes.

    Args:
        path: file of an array (n, c, h, w) uint8 in NumPy's format.
        labels: (n,) int64, -1 for an image without a label.
        fingerprint: fingerprint of the files that were decoded.
    """

    def __init__(self, path: Path, labels: Tensor, fingerprint: str) -> None:
        self.path, self.labels, self.fingerprint = path, labels.long(), fingerprint
        self.images = np.load(path, mmap_mode="r", allow_pickle=False)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.from_numpy(self.images[np.asarray(indices)]), self.labels[torch.as_tensor(indices)]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return MappedDataset, (self.path, self.labels, self.fingerprint)  # workers map the file too


def fits_in_memory(data: FileDataset) -> bool:
    """Return whether the decoded dataset is small enough to be kept in memory."""
    return math.prod(_get_shape(data)) <= MAX_BYTES_IN_MEMORY


def decode_to_memory(data: FileDataset, what: str) -> MemoryDataset:
    """Decode a dataset into memory.

    Args:
        data: the image files.
        what: name of the dataset, for the progress bar.

    Raises:
        UserError: an image cannot be used (any more).
    """
    images = torch.empty(_get_shape(data), dtype=torch.uint8)
    for index, pixels in enumerate(_iterate_decoded(data, what)):
        images[index] = pixels
    return MemoryDataset(images, data.labels)


def decode_to_file(data: FileDataset, folder: Path, what: str) -> MappedDataset:
    """Decode a dataset into a file of the folder, unless the file exists already.

    Args:
        data: the image files.
        folder: the folder; it is created if necessary.
        what: name of the dataset, for the progress bar.

    Raises:
        UserError: an image cannot be used (any more), or the folder cannot be written or has too little space.
    """
    path, shape = folder / f"{make_decode_key(data)}.npy", _get_shape(data)
    with suppress(OSError, ValueError, EOFError):  # there is no such file, or it is damaged
        mapped = MappedDataset(path, data.labels, data.fingerprint)
        if mapped.images.shape == shape and mapped.images.dtype == np.uint8:
            return mapped
    check_writable(folder)
    check_free_space(folder, math.prod(shape), math.prod(shape), of="decoded dataset")

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for pixels in _iterate_decoded(data, what):
            file.write(pixels.numpy().tobytes())

    try:
        write_atomically(path, write)
    except OSError as error:
        raise UserError(f"the decoded images of {what} cannot be written in {folder}: {error.strerror}") from error
    return MappedDataset(path, data.labels, data.fingerprint)


def _iterate_decoded(data: FileDataset, what: str) -> Iterator[Tensor]:
    for each in read_all(data, f"reading {what}", len(data) > 5000):
        if isinstance(each, str):
            raise UserError(each)
        yield each.pixels


def _get_shape(data: FileDataset) -> tuple[int, int, int, int]:
    return len(data), data.channels, data.size, data.size
