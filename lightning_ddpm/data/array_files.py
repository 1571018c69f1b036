"""Images in arrays: a file for each, and the dataset of arrays in any files; their values are checked and measured."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data.datasets import Batch, ImageDataset, MemoryDataset
from lightning_ddpm.data.decode_cache import MAX_BYTES_IN_MEMORY
from lightning_ddpm.data.file_table import FileTable
from lightning_ddpm.data.missing import measure_valid, pool_valid
from lightning_ddpm.data.tiff import TIFF, read_tiff
from lightning_ddpm.data.validation import format_faults
from lightning_ddpm.data.value_options import measure_channels, pool_channels, standardise
from lightning_ddpm.data.value_range import DTYPES, ValueRange, check_finite, to_tensor
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.hashing import hash_text, make_cache_key
from lightning_ddpm.utils.npz import list_npz, read_npz


class ArrayImages(ABC):
    """Images in files of arrays, of one shape and type.

    Attributes:
        shape: (c, h, w) of each image.
        dtype: type of the values, in the machine's byte order whatever the files' is.
        labels: (n,) int64, -1 for an image without a label.
        state: text that changes when a file does.
    """

    shape: tuple[int, int, int]
    dtype: str
    labels: Tensor
    state: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Return an image, (c, h, w); UserError if it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return an image's name in messages."""

    @abstractmethod
    def get_key(self, index: int) -> str:
        """Return an image's name in tables: the path of its file, or its number in a file of many."""


class ArrayFolderImages(ArrayImages):
    """A file for each image; shape and type are those of the first.

    Args:
        paths: the files.
        labels: (n,) int64.
        file: maps each path to the one that is opened, or raises UserError if it must not be.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, file: Callable[[Path], Path] = Path) -> None:
        self.paths, self.labels, self.file = FileTable.of(paths), labels, file
        self.state = hash_text(f"{each}\n" for each in self.paths.describe())
        try:
            first = self._read_file(paths[0])
        except UserError as error:
            raise UserError(f"{paths[0]}: {error}") from error
        self.shape, self.dtype = get_shape(first.shape, str(paths[0])), get_type(first.dtype, str(paths[0]))

    def read(self, index: int) -> np.ndarray:
        array = self._read_file(self.paths[index])
        array = array[None] if array.ndim == 2 else array
        if array.shape != self.shape:
            found, expected = ("x".join(map(str, each)) for each in (array.shape, self.shape))
            raise UserError(f"it is {found} and {self.paths[0].name} is {expected}; arrays are not resized")
        return array

    def _read_file(self, path: Path) -> np.ndarray:
        return _read_array(self.file(path), path.suffix.lower())

    def name(self, index: int) -> str:
        return str(self.paths[index])

    get_key = name


class ArrayDataset(ImageDataset):
    """Some of the images in files of arrays, read at every access.

    Args:
        images: the images.
        chosen: indices of those that belong to the dataset.
    """

    def __init__(self, images: ArrayImages, chosen: Sequence[int]) -> None:
        self.images, self.chosen = images, np.asarray(chosen, np.int64)
        self.labels = images.labels[torch.from_numpy(self.chosen)]
        self.fingerprint = make_cache_key(f"{images.state}\n{list(chosen)}")
        self.names = [images.get_key(index) for index in chosen]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        arrays = []
        for index in indices:
            place = int(self.chosen[index])
            try:
                arrays.append(to_tensor(self.images.read(place)))
            except UserError as error:
                raise UserError(f"{self.images.name(place)} cannot be used: {error}") from error
        return torch.stack(arrays), self.labels[torch.as_tensor(indices)]

    def in_memory(self, values: ValueRange) -> ImageDataset:
        """Return the dataset in memory if it takes up to 1 GiB there, else itself."""
        if len(self) * math.prod(self.images.shape) * DTYPES[self.images.dtype].itemsize > MAX_BYTES_IN_MEMORY:
            return self
        data = MemoryDataset(self.__getitems__(range(len(self)))[0], self.labels, values)
        data.names = self.names
        return data


def scan_values(
    images: ArrayImages, training: Sequence[int], values: ValueRange | None, what: str, masked: bool = False
) -> ValueRange:
    """Read all images once, until a file changes: check their values, and measure their range if none is given.

    Args:
        images: the images.
        training: indices of the training images, of which mean and standard deviation are measured.
        values: the range; ``None`` for the mean and standard deviation of each channel.
        what: name of the dataset, for messages.
        masked: whether NaN stands for values that are missing, and is not counted.

    Returns:
        the range of the values.

    Raises:
        UserError: images cannot be read, or have other shapes or types, or values that are not finite or not in the
            range; or all values of a channel are equal.
    """
    key = make_cache_key(f"{images.state}\n{list(training)}\n{values}" + ("\nmasked" if masked else ""))
    path = find_cached(f"values/{key}.json")
    if (cached := read_cached(path)) is not None:
        mean, std = json.loads(cached)
    else:
        mean, std = _scan(images, training, values, what, masked)
        write_cached(path, json.dumps([mean, std]).encode())
    if values is not None:
        return values
    return standardise(images.dtype, mean, std, what, masked)


def _scan(
    images: ArrayImages, training: Sequence[int], values: ValueRange | None, what: str, masked: bool
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel; UserError with all faults."""
    measured: list[Any] = []
    faults, among = [], set(training)
    indices = ((1, index) for index in range(len(images)))
    for index in show_progress(indices, len(images), f"checking {what}", len(images) > 5000):
        try:
            array = images.read(index)
            if array.dtype.name != images.dtype:
                raise UserError(f"its values are {array.dtype.name}, and those of the first image {images.dtype}")
            check_finite(array, masked)
            if values:
                values.check(array)
        except UserError as error:
            faults.append(f"{images.name(index)}: {error}")
            continue
        if index in among:
            measured.append(measure_valid(array) if masked else measure_channels(array))
    if faults:
        raise UserError(f"{len(faults)} of the {len(images)} images in {what} cannot be used:\n{format_faults(faults)}")
    return pool_valid(measured, what) if masked else pool_channels(measured)


def _read_array(path: Path, suffix: str) -> np.ndarray:
    """Return the array of a .npy file, the only one of a .npz file, or the image of a TIFF."""
    try:
        with path.open("rb") as file:
            if suffix == ".npy":
                return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]
            if suffix in TIFF:
                return read_tiff(file)
            names = list_npz(file, "it")
            if len(names) != 1:
                raise UserError(f"it has the arrays {', '.join(names)}; an image's file has one")
            return read_npz(file, "it", names)[names[0]]
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"it is not a whole file of numbers: {first_line(error)}") from error


def get_shape(shape: Sequence[int], what: str) -> tuple[int, int, int]:
    """Return (c, h, w) of an image of shape (c, h, w) or (h, w); UserError for any other."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"{what} has an image of shape {tuple(shape)}; expected (channels, height, width)")
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    return channels, height, width


def get_type(dtype: np.dtype, what: str) -> str:
    """Return the name of a type of values; UserError if it is none of :data:`DTYPES`."""
    if dtype.name not in DTYPES:
        raise UserError(f"{what} holds {dtype.name}; values have one of the types {', '.join(DTYPES)}")
    return dtype.name
