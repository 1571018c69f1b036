"""Datasets of images, in memory or in files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ddpm.data.file_table import ChosenNames, FileNames, FileTable
from lightning_ddpm.data.image_io import DecodedImage, read_image
from lightning_ddpm.data.order import Blocks
from lightning_ddpm.data.rasters import read_raster
from lightning_ddpm.data.value_range import DTYPES, UINT8, ValueRange
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_bytes, hash_text, make_cache_key
from lightning_ddpm.utils.image_size import ImageSize, format_size, shorten_size

Batch = tuple[Tensor, Tensor | Condition]
"""Images (b, c, h, w), and labels (b,) int64, where -1 is none, or everything that the images are conditioned on."""

OpenFile = Callable[[int], Path | BytesIO]
"""Function that returns the path or the bytes of the image at an index."""
MAX_HASHED = 256
"""Number of images that :func:`hash_images` reads from files."""


class ImageDataset(Dataset[tuple[Tensor, int]], ABC):
    """A dataset of images of one shape, with a class label each; uint8 unless their source declares other values.

    Most sources need no subclass: :class:`MemoryDataset` holds an array and :class:`FileDataset` decodes files. Write
    one to read another storage::

        class Memmap(ImageDataset):
            def __init__(self, path: Path) -> None:
                self.images = np.load(path, mmap_mode="r")  # (n, c, h, w) uint8
                self.labels = torch.full((len(self.images),), -1)
                self.fingerprint = make_cache_key(describe_file(path))

            def __getitems__(self, indices: Sequence[int]) -> Batch:
                return torch.from_numpy(self.images[np.asarray(indices)]), self.labels[torch.as_tensor(indices)]

    Attributes:
        fingerprint: identifies the images. Statistics computed from them are cached under it, so it must change
            whenever any pixel does.
        labels: (n,) int64, -1 for an image without a label.
        names: paths of the images' files, or their numbers in one file; empty where they have none.
        condition_state: text that changes when anything else does that the images are conditioned on.
        blocks: which images are read together, so that they are shuffled in a window; ``None`` for none.
    """

    fingerprint: str
    labels: Tensor
    names: Sequence[str] = ()
    condition_state: str = ""
    blocks: Blocks | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the images and labels at these indices as one batch; a DataLoader calls this, not __getitem__."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0][0], int(self.labels[index])


class MemoryDataset(ImageDataset):
    """A dataset of decoded images in memory.

    Args:
        images: (n, c, h, w) in any memory layout, uint8 unless ``values`` states another type. They are stored
            contiguously, because a network's activations would inherit the layout of a batch.
        labels: (n,) int64, -1 for an image without a label.
        values: type and range of the values; the source declares the same.
    """

    def __init__(self, images: Tensor, labels: Tensor, values: ValueRange = UINT8) -> None:
        check_pixels(images, "MemoryDataset's images", values)
        if not isinstance(labels, Tensor) or labels.shape != (len(images),):
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise UserError(f"MemoryDataset needs one label for each of its {len(images)} images, got {got}; use -1s")
        self.images, self.labels = images.contiguous(), labels.long()
        self.fingerprint = make_cache_key(self.images.numpy().tobytes())

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


def check_pixels(images: object, what: str, values: ValueRange = UINT8) -> None:
    """Check that images (n, c, h, w) have the type that is declared, by default uint8.

    Floats are refused unless their range is declared: they would be taken for 0..255.

    Raises:
        UserError: they are not.
    """
    if not isinstance(images, Tensor) or images.dtype != DTYPES[values.dtype] or images.ndim != 4:
        got = f"{_name(images.dtype)} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"{what} must be a {_name(DTYPES[values.dtype])} tensor (n, channels, height, width) with values "
            f"{values.describe()}, got {got}; for floats in [0, 1], use (255 * images).round().to(torch.uint8), or "
            "declare their range by a ValueRange"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class FileDataset(ImageDataset):
    """A dataset of image files, decoded at every access.

    Args:
        names: the name of each image in error messages.
        file: returns the path or the bytes of the image at an index. It must pickle, and so must not be a lambda, for
            worker processes that are not forked.
        labels: (n,) int64, -1 for an image without a label.
        channels, size: shape that every image is converted to; see :func:`decode_image`.
        state: part of the fingerprint, in one or several texts; it must change whenever a file does, see
            :func:`describe_file`.
        values: type and range of the values. Images of other values than uint8's, or of other numbers of channels than
            1 and 3, are not converted; see :func:`~lightning_ddpm.data.rasters.read_raster`.
    """

    def __init__(
        self,
        names: Sequence[str],
        file: OpenFile,
        labels: Tensor,
        channels: int,
        size: ImageSize,
        state: str | Iterable[str],
        values: ValueRange = UINT8,
    ) -> None:
        self.names, self.file, self.labels = names, file, labels.long()
        self.channels, self.size, self.values = channels, shorten_size(size), values
        self.is_converted = is_plain(channels, values)
        shape = f"{channels}x{self.size if isinstance(self.size, int) else format_size(self.size)}"
        shape += "" if self.is_converted else f" {values.dtype} {values.describe() if values.bounded else ''}"
        shape += " masked" if values.masked else ""
        self.fingerprint = hash_text(_join(shape, [state] if isinstance(state, str) else state, names))[:16]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return torch.stack([self._pixels(index) for index in indices]), self.labels[torch.as_tensor(indices)]

    def _pixels(self, index: int) -> Tensor:
        try:
            return self.decode(index).pixels
        except UserError as error:
            raise UserError(f"{self.names[index]} cannot be used: {error}") from error

    def decode(self, index: int) -> DecodedImage:
        """Decode the image at an index.

        Raises:
            UserError: it cannot be used; the message does not contain its name.
        """
        if self.is_converted:
            return read_image(self.file(index), self.channels, self.size)
        return read_raster(self.file(index), self.channels, self.size, self.values)

    def subset(self, indices: Sequence[int]) -> "FileDataset":
        """Return the dataset of the images at these indices."""
        chosen = np.asarray(indices, np.int64)
        names, labels = ChosenNames(self.names, chosen), self.labels[torch.from_numpy(chosen)]
        file = partial(_open_chosen, self.file, chosen)
        return FileDataset(names, file, labels, self.channels, self.size, self.fingerprint, self.values)


def is_plain(channels: int, values: ValueRange) -> bool:
    """Return whether images are gray or RGB ones of 8 bits, to which every file is converted."""
    return values == UINT8 and channels in (1, 3)


def hash_images(data: ImageDataset) -> str:
    """Return a digest of the images and of what they are conditioned on, wherever their files are.

    It covers all labels, and all images of a dataset in memory. Of any other dataset, whose images would all have to be
    read, it covers :data:`MAX_HASHED` images that are spread evenly; and of one that is read in blocks, what their
    digest covers.
    """
    if isinstance(data, MemoryDataset):
        content = data.fingerprint
    elif data.blocks:
        content = data.blocks.digest
    else:
        n = min(len(data), MAX_HASHED)
        digests = (hash_bytes(data[i * len(data) // n][0].numpy().tobytes()) for i in range(n))
        content = " ".join(digests)
    return hash_bytes(content.encode() + data.labels.numpy().tobytes() + data.condition_state.encode())


def build_path_dataset(
    paths: Sequence[Path],
    labels: Tensor,
    channels: int,
    size: ImageSize,
    file: Callable[[Path], Path] = Path,
    values: ValueRange = UINT8,
) -> FileDataset:
    """Build the dataset of the image files at these paths.

    Args:
        paths: the files.
        labels, channels, size, values: see :class:`FileDataset`.
        file: maps each path to the one that is opened, or raises UserError if it must not be.
    """
    files = FileTable.of(paths)
    open_file = partial(_open_path, file, files)
    return FileDataset(FileNames(files), open_file, labels, channels, size, files.describe(), values)


def _open_path(file: Callable[[Path], Path], paths: Sequence[Path], index: int) -> Path:
    return file(paths[index])


def _open_chosen(file: OpenFile, indices: np.ndarray, index: int) -> Path | BytesIO:
    return file(int(indices[index]))


def _join(shape: str, state: Iterable[str], names: Iterable[str]) -> Iterator[str]:
    """Yield the text of a fingerprint in parts: a million paths are not held twice in memory."""
    yield f"{shape}\n"
    for place, each in enumerate(state):
        yield f" {each}" if place else each
    for name in names:
        yield f"\n{name}"


def describe_file(path: Path) -> str:
    """Return text that changes when a file does: its absolute path, size and times.

    The time of the last change (ctime) cannot be set, as ``touch -r`` or ``cp -p`` set that of the modification.
    """
    return next(FileTable.of([path]).describe())
