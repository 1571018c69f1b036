"""When the running command began: what is read after that holds for all processes that it starts on a machine."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

STARTED = "LIGHTNING_DDPM_STARTED"


@contextmanager
def mark_start() -> Iterator[None]:
    """Let :func:`get_start` return the time at which the context began, here and in processes started inside it."""
    if STARTED in os.environ:  # another process of the same command started this one
        yield
        return
    os.environ[STARTED] = repr(time.time())
    try:
        yield
    finally:
        del os.environ[STARTED]


def get_start() -> float | None:
    """Return the time at which the running command began, in seconds since 1970; ``None`` outside of a command."""
    started = os.environ.get(STARTED)
    return None if started is None else float(started)
