"""A lock that keeps a second process out of a folder, and that ends with the process that holds it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError

LOCK = ".lock"
"""Name of the file. It is removed at the end; one that a killed process left is locked by nobody."""

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
    path = folder / LOCK
    descriptor = _acquire(path, advice)
    try:
        yield
    finally:
        # Removed before it is released: whoever opened it meanwhile sees that it is gone, and creates another.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, advice: str) -> int:
    """Return the descriptor of the locked file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(f"cannot open {path} ({error.strerror}); delete it, or choose another folder") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
            os.close(descriptor)  # its holder removed it in between
        except OSError as error:
            if error.errno in UNSUPPORTED:
                report(
                    f"warning: {path.parent} is on a file system without locks ({error.strerror}), so that nothing "
                    "keeps a second run out of this folder"
                )
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"cannot lock {path} ({error.strerror}); choose another folder") from error
            holder = path.read_text(errors="replace") if path.exists() else ""
            raise UserError(
                f"{path.parent} is in use by another run ({holder or 'an unknown process'}); {advice}"
            ) from error
