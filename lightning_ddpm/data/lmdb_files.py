"""Open LMDB databases that may be damaged. LMDB maps the file, and a process that reads beyond its end is killed."""

import struct
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.extras import import_extra

META = struct.Struct("<16x I I Q Q I 44x 48x Q")
"""A meta page of 64-bit LMDB: magic, version, address, map size, page size (with the rest of two tables), last page."""
MAGIC, VERSION = 0xBEEFC0DE, 1
FIX = "delete this folder, so that it is downloaded again"


@cache
def open_lmdb(folder: Path) -> tuple[Any, list[bytes]]:
    """Open an LMDB and return it with its keys; LMDB must not be opened twice in a process.

    torchvision's own LSUN class is not used: it unpickles a list of keys from the current folder, whoever wrote it.

    Raises:
        UserError: lmdb is not installed, or the folder holds no LMDB or a damaged one.
    """
    lmdb = import_extra("lmdb", "images of LSUN", "lsun")
    _check_header(folder / "data.mdb")
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False, max_readers=1)
        with environment.begin() as transaction:
            keys, declared = list(transaction.cursor().iternext(values=False)), transaction.stat()["entries"]
    except lmdb.Error as error:
        raise UserError(f"{folder} is not an LMDB of LSUN: {error}; {FIX}") from error
    if len(keys) != declared or not keys:
        raise UserError(f"{folder} has {len(keys):,} images and declares {declared:,}; {FIX}")
    return environment, keys


def read_lmdb(folder: Path, chosen: Sequence[int], index: int) -> BytesIO:
    """Return the bytes of an image; a worker process opens the LMDB itself.

    Args:
        folder: the LMDB.
        chosen: the indices of the images of a split among all keys.
        index: index of the image in the split.
    """
    environment, keys = open_lmdb(folder)
    with environment.begin() as transaction:
        return BytesIO(transaction.get(keys[chosen[index]]))


def _check_header(path: Path) -> None:
    """Check that the file has all pages that its header declares.

    Raises:
        UserError: it has not.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, version, _, _, page, last = META.unpack(file.read(META.size))
            file.seek(page)
            second = META.unpack(file.read(META.size))
    except (OSError, struct.error, OverflowError) as error:
        raise UserError(f"{path.parent} is not an LMDB of LSUN, or damaged: {error}; {FIX}") from error
    if (magic, version) != (MAGIC, VERSION) or second[:2] != (MAGIC, VERSION):
        raise UserError(f"{path.parent} is not an LMDB of LSUN, or its header is damaged; {FIX}")
    needed = (max(last, second[-1]) + 1) * page
    if page not in (2**power for power in range(9, 17)) or second[4] != page or needed > size:
        raise UserError(f"{path} is damaged: it has {size:,} bytes and declares {needed:,}; {FIX}")
