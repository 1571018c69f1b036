"""Decode image files once: into memory, or into a file that all processes of a machine map."""

import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.datasets import Batch, FileDataset, ImageDataset, MemoryDataset
from lightning_ddpm.data.padded import PaddedDataset
from lightning_ddpm.data.validation import make_decode_key, read_all
from lightning_ddpm.data.value_range import DTYPES, to_array, wrap_array
from lightning_ddpm.utils.cache import DIGEST_BYTES, report_unusable, seal
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_free_space, remove_leftovers, write_atomically
from lightning_ddpm.utils.image_size import get_sides
from lightning_ddpm.utils.locks import wait_for_folder

MAX_BYTES_IN_MEMORY = 2**30
"""Largest size of a decoded dataset that is kept in memory."""
MAX_BYTES_COMPARED = 2**30
"""Bytes of a decoded dataset that are compared with their sums at the start of a run; the others when they are used."""

Shape = tuple[int, int, int, int]
"""(n, c, h, w) of all images."""


class MappedDataset(ImageDataset):
    """A dataset of decoded images in a memory-mapped file, whose pages the operating system shares among processes.

    The file is an array (n, c, h, w) in NumPy's format, followed by the CRC-32 of each image and the SHA-256 of
    these and of the header. Each image is compared with its CRC-32 when it is first used.

    Args:
        path: the file.
        shape: (n, c, h, w).
        labels: (n,) int64, -1 for an image without a label.
        fingerprint: fingerprint of the files that were decoded.
        dtype: type of the values.

    Raises:
        UserError: there is no such file, or it is damaged.
    """

    def __init__(self, path: Path, shape: Shape, labels: Tensor, fingerprint: str, dtype: str = "uint8") -> None:
        self.path, self.labels, self.fingerprint = path, labels.long(), fingerprint
        header, n, pixels = _make_header(shape, dtype), shape[0], math.prod(shape) * np.dtype(dtype).itemsize
        try:
            with path.open("rb") as file:  # all sizes are known, so that nothing in the file is believed
                complete = os.fstat(file.fileno()).st_size == len(header) + pixels + 4 * n + DIGEST_BYTES
                begin = file.read(len(header))
                file.seek(pixels, os.SEEK_CUR)
                table, end = file.read(4 * n), file.read()
            if not complete or begin != header or end != seal(header + table):
                raise UserError(f"{path} is damaged, or was written by an older version")
            self.images = np.memmap(path, dtype, "r", len(header), shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from error
        self._sums, self._compared = np.frombuffer(table, "<u4"), np.zeros(n, bool)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        images = self.images[chosen]
        for place in np.flatnonzero(~self._compared[chosen]).tolist():
            index = indices[place]
            if zlib.crc32(images[place]) != self._sums[index]:
                raise UserError(
                    f"image {index} of the decoded images in {self.path} is damaged; delete that file, and it is "
                    "written again"
                )
            self._compared[index] = True
        return wrap_array(images), self.labels[torch.as_tensor(indices)]

    def check_sample(self) -> None:
        """Compare images that are spread evenly over the dataset, up to :data:`MAX_BYTES_COMPARED`, with their sums.

        Raises:
            UserError: one of them is damaged.
        """
        n = len(self)
        compared = max(1, min(n, MAX_BYTES_COMPARED // (self.images.nbytes // n)))
        for i in range(compared):
            self.__getitems__([i * n // compared])

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        content = self.path, self.images.shape, self.labels, self.fingerprint, self.images.dtype.name
        return MappedDataset, content  # workers map it, too


def decode_once(data: ImageDataset, folder: Path | None, what: str) -> ImageDataset:
    """Return a dataset of image files decoded: in memory if they fit, else from the cache's folder if there is one."""
    if isinstance(data, ConditionedDataset | PaddedDataset):
        return data.map_images(lambda each: decode_once(each, folder, what))
    if not isinstance(data, FileDataset) or data.blocks:  # which are streamed
        return data
    if fits_in_memory(data):
        return decode_to_memory(data, what)
    return open_decoded(data, folder) if folder else data


def decode_large(data: ImageDataset, folder: Path, what: str) -> None:
    """Have :func:`decode_to_file` decode the image files of a dataset that are not kept in memory."""
    if isinstance(data, ConditionedDataset | PaddedDataset):
        for each in (data.images, data.pairs) if isinstance(data, ConditionedDataset) else (data.data,):
            if each is not None:
                decode_large(each, folder, what)
    elif isinstance(data, FileDataset) and not data.blocks and not fits_in_memory(data):
        decode_to_file(data, folder, what)


def fits_in_memory(data: FileDataset) -> bool:
    """Return whether the decoded dataset is small enough to be kept in memory."""
    return _count_bytes(data, DTYPES[data.values.dtype].itemsize) <= MAX_BYTES_IN_MEMORY


def decode_to_memory(data: FileDataset, what: str) -> MemoryDataset:
    """Decode a dataset into memory.

    Args:
        data: the image files.
        what: name of the dataset, for the progress bar.

    Raises:
        UserError: an image cannot be used (any more).
    """
    images = torch.empty(_get_shape(data), dtype=DTYPES[data.values.dtype])
    for index, pixels in enumerate(_iterate_decoded(data, what)):
        images[index] = pixels
    return MemoryDataset(images, data.labels, data.values)


def decode_to_file(data: FileDataset, folder: Path, what: str) -> ImageDataset:
    """Decode a dataset into a file of the folder, unless the file exists already.

    Args:
        data: the image files.
        folder: the folder; it is created if necessary.
        what: name of the dataset, for the progress bar.

    Returns:
        the decoded images, or where the folder cannot be written or has too little space, ``data`` itself.

    Raises:
        UserError: an image cannot be used (any more).
    """
    if found := _find_whole(data, folder):
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with wait_for_folder(folder, what):
            os.listdir(folder)  # NFS compares what it remembers of a folder when the folder is opened
            if found := _find_whole(data, folder):
                return found
            remove_leftovers(folder)  # before the space is counted
            _check_space(folder, _count_bytes(data, np.dtype(data.values.dtype).itemsize))
            _decode(data, _find_file(data, folder), what)
    except OSError as error:
        where = "set data.decode_cache to a folder that can be"
        report_unusable(str(folder), error.strerror or str(error), where)
        return data
    return _map(data, folder)


def _find_whole(data: FileDataset, folder: Path) -> ImageDataset | None:
    """Return the decoded images if they are in the folder and whole, as far as a sample of them shows."""
    path = _find_file(data, folder)
    try:
        mapped = _map(data, folder)
        mapped.check_sample()
    except UserError as error:
        if os.path.lexists(path):
            report(f"decoding again: {error}")
        return None
    return mapped


def _decode(data: FileDataset, path: Path, what: str) -> None:
    """Write the file of decoded images."""
    header, sums = _make_header(_get_shape(data), data.values.dtype), bytearray()

    def write(file: BinaryIO) -> None:
        file.write(header)
        for pixels in _iterate_decoded(data, what):
            content = to_array(pixels, data.values).tobytes()
            file.write(content)
            sums.extend(zlib.crc32(content).to_bytes(4, "little"))
        file.write(bytes(sums) + seal(header + bytes(sums)))

    write_atomically(path, write)


def open_decoded(data: FileDataset, folder: Path) -> ImageDataset:
    """Return the dataset that :func:`decode_to_file` has written in the folder, or ``data`` where there is none."""
    try:
        return _map(data, folder)
    except UserError:
        return data


def _map(data: FileDataset, folder: Path) -> MappedDataset:
    path = _find_file(data, folder)
    return MappedDataset(path, _get_shape(data), data.labels, data.fingerprint, data.values.dtype)


def _check_space(folder: Path, needed: int) -> None:
    """Raise OSError if the disk has too little space."""
    try:
        check_free_space(folder, needed, needed, of="decoded dataset")
    except UserError as error:
        raise OSError(str(error)) from error


def _find_file(data: FileDataset, folder: Path) -> Path:
    return folder / f"{make_decode_key(data)}.npy"


def _make_header(shape: Shape, dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _iterate_decoded(data: FileDataset, what: str) -> Iterator[Tensor]:
    for each in read_all(data, f"reading {what}", len(data) > 5000):
        if isinstance(each, str):
            raise UserError(each)
        yield each.pixels


def _get_shape(data: FileDataset) -> Shape:
    return len(data), data.channels, *get_sides(data.size)


def _count_bytes(data: FileDataset, value: int) -> int:
    """Return the size of all images whose values have this number of bytes."""
    return math.prod(_get_shape(data)) * value
