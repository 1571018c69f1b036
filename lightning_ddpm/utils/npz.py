"""Read npz files of arrays, within bounds: a small file may declare arrays of any size."""

import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from lightning_ddpm.utils.errors import UserError, first_line

MAX_RATIO = 200
"""Largest size of an array in relation to the compressed file; zlib reaches 1,000 on zeros, and images some 20."""
FREE_BYTES = 2**26
"""Size up to which no ratio is too large."""
CHUNK = 2**24
"""Number of bytes that are decompressed at a time."""
MAX_HEADER = 10_000
"""Largest header of an array in bytes."""


def list_npz(file: BinaryIO, name: str) -> list[str]:
    """Return the sorted names of the arrays; see :func:`read_npz`."""
    with _open_archive(file, name) as archive:
        return sorted(each.removesuffix(".npy") for each in archive.namelist())


def read_npz(file: BinaryIO, name: str, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Return those of the wanted arrays that an npz file has.

    Args:
        file: the open file.
        name: its name, for messages.
        wanted: names of arrays; others are not read.

    Raises:
        UserError: the file is damaged, or an array is larger than the file can hold.
    """
    with _open_archive(file, name) as archive:
        size = file.seek(0, 2)
        found = {each: archive.getinfo(f"{each}.npy") for each in wanted if f"{each}.npy" in archive.NameToInfo}
        total = sum(each.file_size for each in found.values())
        if total > max(FREE_BYTES, MAX_RATIO * size):
            raise UserError(
                f"{name} has {size:,} bytes and declares arrays of {total:,}, more than {MAX_RATIO} times as many; "
                "write it again without compression"
            )
        return {each: _read_array(archive, info) for each, info in found.items()}


@contextmanager
def _open_archive(file: BinaryIO, name: str) -> Iterator[zipfile.ZipFile]:
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything, MemoryError included
        raise UserError(f"{name} is not an npz file, or damaged: {first_line(error)}") from error


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} is of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(member, max_header_size=MAX_HEADER)
        start = member.seek(0, os.SEEK_CUR)
    if dtype.hasobject or start + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{info.filename} declares {dtype} of shape {shape} and has {info.file_size - start} bytes")
    content = memoryview(bytearray(info.file_size))
    with archive.open(info) as member:
        assert isinstance(member, zipfile.ZipExtFile)
        for begin in range(0, info.file_size, CHUNK):
            member.readinto(content[begin : begin + CHUNK])  # at the end this compares the CRC-32, too
    array = np.frombuffer(content, dtype, offset=start)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
