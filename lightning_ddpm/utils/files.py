"""Files that are whole or not there, and folders that can be written."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_file


def get_cache_folder() -> Path:
    """Where what can be computed again is kept: ``$LIGHTNING_DDPM_CACHE``, else under the user's cache folder."""
    if given := os.environ.get("LIGHTNING_DDPM_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_ddpm"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name beside ``path`` and move it there, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # tempfile's would be its owner's alone
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk, as fsync has their content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_free_space(folder: Path, largest: int, total: int, of: str = "checkpoint") -> None:
    """Refuse a folder that is too small, by reserving a file as large as the largest and giving it back.

    Args:
        folder: which exists.
        largest: bytes of the largest file to come.
        total: bytes of all of them.
        of: what they are.

    Raises:
        UserError: a full disk, a quota or a limit on files is in the way.
    """
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(
            f"the {of}s take {total / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB left; make room, or "
            "choose another folder"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            os.posix_fallocate(trial.fileno(), 0, max(largest, 1))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return  # this file system does not reserve
        raise UserError(
            f"a {of} of {largest / 1e6:,.0f} MB cannot be written in {folder} ({error.strerror or error}); make "
            "room, lift the limit, or choose another folder"
        ) from error


def check_writable(folder: Path) -> None:
    """Make the folder and try to write in it, before hours are spent on what could not be saved.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"trial")
    except OSError as error:
        raise UserError(f"cannot write in {folder} ({error.strerror or error}); choose another folder") from error


def check_published(path: Path) -> None:
    """Compare a file with the ``SHA256SUMS`` beside it, if there is one that lists it, as ``sha256sum`` writes them.

    Raises:
        UserError: its content is another.
    """
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.is_file() else []
    expected = {name.strip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}
    if path.name in expected and (digest := hash_file(path)) != expected[path.name]:
        raise UserError(
            f"{path} is not the file that {sums} lists: its SHA-256 is {digest}, expected {expected[path.name]}; "
            "download it again"
        )
