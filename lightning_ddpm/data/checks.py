"""Reading every picture of a set before it is needed, in parallel, and saying all that is wrong at once."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from lightning_ddpm.console import progress
from lightning_ddpm.data.datasets import FileDataset
from lightning_ddpm.errors import UserError
from lightning_ddpm.files import cache_folder, write_whole
from lightning_ddpm.images import Picture

THREADS = min(4, os.cpu_count() or 1)
"""So many read; more are in each other's way, for a decoder has Python's lock for a part of its time."""

NAMED = 10
"""So many faults are listed where not all can be."""


def read_all(data: FileDataset, what: str, show: bool = True) -> Iterator[Picture | str]:
    """Every picture of a set in order, read by threads (decoders run side by side); a fault where it cannot be used.

    Args:
        data: the set.
        what: what is being done, for the progress bar.
        show: whether there is one.
    """

    def attempt(index: int) -> Picture | str:
        try:
            return data.picture(index)
        except UserError as error:
            return f"{data.names[index]}: {error}"

    def results() -> Iterator[tuple[int, Picture | str]]:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(data), 256):  # not all at once: the results wait in memory
                some = range(start, min(start + 256, len(data)))
                parts = pool.map(
                    lambda indices: [*map(attempt, indices)], (some[i : i + 16] for i in range(0, 256, 16))
                )
                yield from ((1, each) for part in parts for each in part)

    return progress(results(), len(data), what, show)


def faults(data: FileDataset, what: str) -> dict[int, str]:
    """What is wrong with which pictures.

    All are read once and the answer is kept in the cache until a file changes; those that were bad are read again.

    Args:
        data: the set.
        what: the set's name, for the progress bar.
    """
    known = _cached(data)
    suspects = range(len(data)) if known is None else known
    read = read_all(data.only(suspects), f"checking {what}", len(suspects) > 5000)
    found = {index: each for index, each in zip(suspects, read, strict=True) if isinstance(each, str)}
    if known is None:
        remember(data, found)
    return found


def remember(data: FileDataset, bad: Iterable[int]) -> None:
    """Keep what :func:`faults` would find out, where the cache can be written."""
    text = json.dumps(list(bad))
    try:
        write_whole(_path(data), lambda file: file.write(text.encode()))
    except OSError:
        return  # only time is lost


def _cached(data: FileDataset) -> list[int] | None:
    try:
        return [range(len(data))[index] for index in json.loads(_path(data).read_text())]
    except (OSError, ValueError, TypeError, IndexError):
        return None


def _path(data: FileDataset) -> Path:
    return cache_folder() / "checked" / f"{key(data)}.json"


def key(data: FileDataset) -> str:
    """Names what was found out about a set's decoded pictures, until a file or Pillow changes."""
    return hashlib.sha256(f"{data.fingerprint} {PIL.__version__}".encode()).hexdigest()[:16]


def listed(found: Sequence[str]) -> str:
    """The first faults, a line each, and how many more there are."""
    more = [f"... and {len(found) - NAMED} more"] if len(found) > NAMED else []
    return "\n".join([*found[:NAMED], *more])
