"""Write files atomically, and check folders and files before they are needed."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_file
from lightning_ddpm.utils.paths import resolve_path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}", re.DOTALL)
"""Names of the temporary files of :func:`write_atomically`."""
DAY = 86400
"""Seconds after which a temporary file is a leftover where there are no locks."""


def get_cache_folder() -> Path:
    """Return the folder of cached results: ``$LIGHTNING_DDPM_CACHE``, or one in the user's cache folder."""
    if given := os.environ.get("LIGHTNING_DDPM_CACHE"):
        return resolve_path(given)
    return resolve_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lightning_ddpm"


def read_utf8(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}; save it as UTF-8"
        ) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object], flush: bool = True) -> None:
    """Write a file under a temporary name beside ``path`` and move it there, so that nobody ever sees half of it.

    A link at ``path`` is replaced, so that no file elsewhere is overwritten. The first write of a process in a folder
    removes what killed processes have left there.

    Args:
        path: the file; its folder is created.
        write: writes the content.
        flush: wait until the file is on the disk; False for one of many, after which :func:`flush_files` is called.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _CLEANED:
        _CLEANED.add(path.parent)
        remove_leftovers(path.parent)
    file = _open_temporary(path)
    temporary = Path(file.name)
    try:
        with file:
            write(file)
            file.flush()
            if flush:
                os.fsync(file.fileno())
            os.replace(temporary, path)  # while the lock is held: a file without one is taken for a leftover
        if flush:
            sync_folder(path.parent)
    except BaseException as error:
        error.add_note(f"{path} was being written")
        temporary.unlink(missing_ok=True)
        raise


_CLEANED: set[Path] = set()


def link_atomically(path: Path, written: Path) -> None:
    """Make ``path`` a hard link to a file that is on the disk already, in place of what stands there.

    Raises:
        OSError: the file system has no hard links.
    """
    temporary = _name_temporary(path)
    os.link(written, temporary)
    try:
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _name_temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # tempfile's would be its owner's alone


def _open_temporary(path: Path) -> BinaryIO:
    """Create and lock a temporary file beside ``path``; the lock ends with the process, however that ends."""
    while True:
        file = _name_temporary(path).open("xb")
        with suppress(OSError):  # a file system without locks: see remove_leftovers
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process took it for a leftover before it was locked


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of :func:`write_atomically` whose process has ended.

    A file that a live process of any machine writes is locked. On a file system without locks, files stay for a day.
    """
    with suppress(OSError):
        for entry in [each for each in os.scandir(folder) if TEMPORARY.fullmatch(each.name)]:
            with suppress(OSError), open(entry.path, "rb+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EACCES) or time.time() - entry.stat().st_mtime < DAY:
                        continue
                os.unlink(entry.path)


def flush_files() -> None:
    """Wait until all files are on the disk: for thousands of small ones much faster than for each by itself."""
    os.sync()


def sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk, as fsync does with their content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_free_space(folder: Path, largest: int, total: int, of: str = "checkpoint") -> None:
    """Check that files will fit in a folder, by reserving a file as large as the largest and deleting it.

    Args:
        folder: an existing folder.
        largest: bytes of the largest file.
        total: bytes of all files.
        of: description of a file, for the message.

    Raises:
        UserError: the disk is full, or a quota or a limit on the size of files is exceeded.
    """
    needed, free = total / 1e6, shutil.disk_usage(folder).free / 1e6
    if free < needed:
        raise UserError(
            f"the {of}s take {needed:,.0f} MB and {folder} has {free:,.0f} MB left; make room, or choose another folder"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            os.posix_fallocate(trial.fileno(), 0, max(largest, 1))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return  # this file system cannot reserve space
        raise UserError(
            f"a {of} of {largest / 1e6:,.0f} MB cannot be written in {folder} ({error.strerror or error}); make "
            "room, lift the limit, or choose another folder"
        ) from error


def check_writable(folder: Path) -> None:
    """Create the folder and try to write in it, so that a long run does not fail when it saves its result.

    Raises:
        UserError: the folder cannot be created or written.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is a file, and a folder is needed in its place; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"trial")
    except OSError as error:
        raise UserError(f"cannot write in {folder} ({error.strerror or error}); choose another folder") from error


@contextmanager
def fill_folder(folder: Path) -> Iterator[None]:
    """Let the files of one command be written into a new or empty folder inside the context, all or none of them.

    A folder that a killed process has begun to fill may be filled again.

    Raises:
        UserError: it holds something else, or cannot be written.
    """
    check_writable(folder)
    unfinished = folder / ".unfinished-export"
    if any(folder.iterdir()) and not unfinished.is_file():
        raise UserError(f"{folder} is not empty; choose another folder")
    unfinished.touch()
    yield
    unfinished.unlink()


def check_output_file(path: Path, option: str, suffixes: Sequence[str], inputs: Iterable[Path | None] = ()) -> None:
    """Check that a result can be written to a file, and create its folder, before the work for it starts.

    Args:
        path: the file; an existing one is replaced.
        option: the option that names it, for messages.
        suffixes: what its name may end with.
        inputs: files that the command reads, which it must not be.

    Raises:
        UserError: it cannot be written, or must not be.
    """
    if os.path.isdir(path):  # pathlib raises an error where a folder may not be searched
        raise UserError(f"{option} must be a file, and {path} is a folder; name a file in it")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} must be a file name that ends in {' or '.join(suffixes)}, got {path}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{option} {path} is a device or a pipe, and the file is moved to its place; name a file")
    if any(each and os.path.exists(each) and os.path.exists(path) and path.samefile(each) for each in inputs):
        raise UserError(f"{option} {path} is read by the command, and would be overwritten; choose another name")
    check_writable(path.parent)


def check_published(path: Path) -> None:
    """Compare a file with its entry in the ``SHA256SUMS`` (as written by ``sha256sum``) of its folder, if any.

    Raises:
        UserError: the digest differs.
    """
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    expected = {name.strip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}
    if path.name in expected and (digest := hash_file(path)) != expected[path.name]:
        raise UserError(
            f"{path} is not the file that {sums} lists: its SHA-256 is {digest}, expected {expected[path.name]}; "
            "download it again"
        )


def write_json(path: Path, content: object) -> None:
    """Write plain data as JSON, atomically; it cannot hold NaN or infinity, for which JSON has no values.

    Raises:
        ValueError: it holds one: the caller states what is not finite in another way.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
