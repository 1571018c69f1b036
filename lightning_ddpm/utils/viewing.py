"""What only shows a run, such as curves and sample images: it may fail without ending the run."""

from collections.abc import Callable

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import first_line

_failing: set[str] = set()


def write_for_viewing(
    what: str, write: Callable[[], object], errors: type[Exception] | tuple[type[Exception], ...] = OSError
) -> bool:
    """Write something that training can do without, and return whether that succeeded.

    A failure is reported once, until the same thing has been written again.

    Args:
        what: names it in the report, with its folder.
        write: writes it.
        errors: the exceptions that count as a failure.
    """
    try:
        write()
    except errors as error:
        if what not in _failing:
            _failing.add(what)
            report(f"cannot write {what} ({first_line(error)}); training continues, and later ones are tried again")
        return False
    _failing.discard(what)
    return True
