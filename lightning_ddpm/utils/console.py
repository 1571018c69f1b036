"""Console output of a run: progress bars on a terminal, and a line now and then in a log file."""

import io
import logging
import sys
import time
import unicodedata
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

lost: deque[str] = deque(maxlen=1)
"""The last line that could not be printed."""


def is_terminal() -> bool:
    """Return whether the output is a terminal."""
    return sys.stdout.isatty()


def report(line: str) -> None:
    """Print a line without buffering; on a terminal it stands above the progress bar, if there is one.

    If the file that the output goes to cannot be written, as on a full disk, this is kept in ``lost``, not raised.
    """
    try:
        print(make_printable(line), flush=True)
    except OSError:
        lost.append(line)


def make_printable(text: str) -> str:
    """Return text with its control characters escaped: names of files and classes must not steer a terminal."""
    shown = (each.isprintable() or each in "\n\t" or unicodedata.category(each) == "Zs" for each in text)
    return "".join(
        each if show else each.encode("unicode_escape").decode() for each, show in zip(text, shown, strict=True)
    )


def silence_pillow() -> None:
    """Hide Pillow's warnings and log records, mostly of odd metadata: the pixels are right, or reading them fails.

    This changes the whole process, so the command line calls it and nothing else does.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"PIL\.")


def let_print_any_name() -> None:
    """Print characters that the output's encoding lacks as escapes, as errors are: a name must not end a run.

    This changes the whole process, too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def format_duration(seconds: float) -> str:
    """Format seconds in a readable unit: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count(n: int, what: str) -> str:
    """Return a number of things in words: ``1 device``, ``2 devices``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def show_progress(
    batches: Iterable[tuple[int, Item]], total: int, what: str = "", show: bool = True, bar: bool = True
) -> Iterator[Item]:
    """Yield batches and show the number of images done, their rate and the time left.

    Args:
        batches: pairs of the number of images in a batch and the batch.
        total: total number of images.
        what: description of the work.
        show: False for no output, as on all ranks but the first.
        bar: False to print lines instead of a bar, as during training, whose bar is on the terminal already.
    """
    if not show or not total:
        yield from (batch for _, batch in batches)
    elif bar and is_terminal():
        yield from _with_bar(batches, total, what)
    else:
        yield from _with_lines(batches, total, what)


def _with_bar(batches: Iterable[tuple[int, Item]], total: int, what: str) -> Iterator[Item]:
    speed = TextColumn("{task.fields[speed]}", markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        speed,
        TimeRemainingColumn(),
    )
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task(make_printable(what), total=total, speed="")
        for n, batch in batches:
            yield batch
            done += n
            bar.update(task, advance=n, speed=f"{done / (time.monotonic() - start):.1f} images/s")


def _with_lines(batches: Iterable[tuple[int, Item]], total: int, what: str, every: float = 15.0) -> Iterator[Item]:
    start = reported = time.monotonic()
    done = 0
    for n, batch in batches:
        yield batch
        done += n
        now = time.monotonic()
        if now - reported >= every and done < total:
            reported, rate = now, done / (now - start)
            report(f"{what}: {done} of {total}, {rate:.1f} images/s, {format_duration((total - done) / rate)} left")
    seconds = time.monotonic() - start
    report(f"{what}: {done} in {format_duration(seconds)}, {done / max(seconds, 1e-9):.1f} images/s")
