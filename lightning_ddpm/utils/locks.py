"""Locks that keep a second process out of a folder, and that end with the process that holds them."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError

LOCK = ".lock"
"""Name of the file. It is removed at the end; one that a killed process left is locked by nobody."""

PREPARING = ".preparing.lock"
"""Name of the file of :func:`wait_for_folder`: data may be prepared in the folder of a run."""

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def lock_folder(folder: Path, advice: str) -> Iterator[None]:
    """Hold the folder's lock inside the context.

    It is a POSIX record lock, which NFS passes to its server. The operating system releases it when the process ends,
    however it ends, and child processes do not inherit it.

    Args:
        folder: an existing folder that can be written.
        advice: what to do if the lock is held, for the message.

    Raises:
        UserError: another process holds it.
    """

    def refuse(holder: str) -> None:
        raise UserError(f"{folder} is in use by another run ({holder}); {advice}")

    path = folder / LOCK
    try:
        descriptor, is_locked = _acquire(path, refuse)
    except OSError as error:
        fix = "choose another folder" if path.is_file() else "delete it, or choose another folder"
        raise UserError(f"cannot open {path} ({error.strerror}); {fix}") from error
    if not is_locked:
        report(f"warning: {folder} is on a file system without locks, so that nothing keeps a second run out of it")
    with _release(path, descriptor):
        yield


@contextmanager
def wait_for_folder(folder: Path, what: str) -> Iterator[bool]:
    """Hold another lock of the folder inside the context; wait while a process of any machine holds it.

    Args:
        folder: an existing folder.
        what: what is prepared there, for the line that is printed once while it waits.

    Yields:
        Whether the file system has locks; if not, nothing is held.

    Raises:
        OSError: the folder cannot be written.
    """
    waits: list[str] = []

    def wait(holder: str) -> None:
        if not waits:
            report(f"waiting for another run ({holder}), which prepares {what} in {folder}")
        waits.append(holder)
        time.sleep(0.2)

    path = folder / PREPARING
    descriptor, is_locked = _acquire(path, wait)
    with _release(path, descriptor):
        yield is_locked


@contextmanager
def _release(path: Path, descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        # Removed before it is released: whoever opened it meanwhile sees that it is gone, and creates another.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, on_held: Callable[[str], None]) -> tuple[int, bool]:
    """Return the descriptor of the file and whether it is locked, which not every file system can.

    Args:
        path: the file.
        on_held: called with a description of the process that holds the lock, before each further attempt.

    Raises:
        OSError: the file cannot be opened or locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor, True
            os.close(descriptor)  # its holder removed it in between
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return descriptor, False
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            try:
                holder = path.read_text(errors="replace")
            except FileNotFoundError:
                holder = ""
            on_held(holder or "an unknown process")
