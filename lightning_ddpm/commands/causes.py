"""Find what an exception comes from: the user's mistake, or a line of the user's own code."""

import errno
import os
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from lightning_ddpm.utils.errors import UserError, first_line

NOT_THEIRS = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(__file__).parents[1], sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
)
"""The folders of this package and of Python."""
LIBRARIES = {"site-packages", "dist-packages"}
"""Names of the folders that libraries are installed in."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors of a disk that is full, limited, read-only or broken."""


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, the one that it was raised from, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def find_user_error(error: BaseException) -> UserError | None:
    """Return the user's mistake that an exception comes from, if there is one."""
    return next((each for each in list_causes(error) if isinstance(each, UserError)), None)


def describe_full_disk(error: BaseException) -> str | None:
    """Return a sentence on the file that could not be written, if a disk is what an exception comes from."""
    causes = list(list_causes(error))
    full = next((each for each in causes if isinstance(each, OSError) and each.errno in FULL), None)
    if full is None:
        return None
    notes = [note for each in causes for note in getattr(each, "__notes__", ())]
    where = f"; {notes[0]}" if notes else f": {full.filename}" if full.filename else ""
    return f"the disk cannot be written ({full.strerror}{where}); make room, and run the same command again"


def find_user_code(error: BaseException) -> tuple[BaseException, str] | None:
    """Return the exception that the user's own code raised, or let pass, and its ``FILE:LINE: TypeError: message``."""
    for each in list_causes(error):
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(each.__traceback__)]
        if isinstance(each, SyntaxError) and each.filename:
            lines.append((each.filename, each.lineno))
        theirs = [(name, line) for name, line in lines if _is_theirs(Path(name))]
        if theirs:
            name, line = theirs[-1]
            return each, f"{name}:{line}: {type(each).__name__}: {first_line(each)}"
    return None


def _is_theirs(file: Path) -> bool:
    return file.is_absolute() and not str(file).startswith(NOT_THEIRS) and LIBRARIES.isdisjoint(file.parts)
