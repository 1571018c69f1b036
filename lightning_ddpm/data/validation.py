"""Check every image file of a dataset in parallel before training, and report all faults at once."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from lightning_ddpm.data.datasets import FileDataset
from lightning_ddpm.data.image_io import DecodedImage
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import make_cache_key

THREADS = min(4, os.cpu_count() or 1)
"""Number of reading threads; more are no faster, because a decoder holds Python's lock for a part of its time."""

MAX_NAMED = 10
"""Largest number of faults in a message."""


def read_all(data: FileDataset, what: str, show: bool = True) -> Iterator[DecodedImage | str]:
    """Yield every image of a dataset in order, decoded by several threads, or the fault of one that cannot be used.

    Args:
        data: the image files.
        what: text of the progress bar.
        show: whether to show the progress bar.
    """

    def attempt(index: int) -> DecodedImage | str:
        try:
            return data.decode(index)
        except UserError as error:
            return f"{data.names[index]}: {error}"

    def results() -> Iterator[tuple[int, DecodedImage | str]]:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(data), 256):  # in parts, because results wait in memory
                parts = (range(len(data))[i : i + 16] for i in range(start, min(start + 256, len(data)), 16))
                for part in pool.map(lambda indices: [*map(attempt, indices)], parts):
                    yield from ((1, each) for each in part)

    return show_progress(results(), len(data), what, show)


def find_faults(data: FileDataset, what: str) -> dict[int, str]:
    """Return the faults of the images that cannot be used, by index.

    All images are read once. The indices of the faults stay in the cache until a file changes; only these images are
    read again.

    Args:
        data: the image files.
        what: name of the dataset, for the progress bar.
    """
    cached = read_cached(_cache_path(data))
    known: list[int] | None = None if cached is None else json.loads(cached)
    suspects = range(len(data)) if known is None else known
    read = read_all(data.subset(suspects), f"checking {what}", len(suspects) > 5000)
    found = {index: each for index, each in zip(suspects, read, strict=True) if isinstance(each, str)}
    if known is None:
        cache_faults(data, found)
    return found


def cache_faults(data: FileDataset, bad: Iterable[int]) -> None:
    """Store indices of faulty images for :func:`find_faults`, if the cache can be written."""
    write_cached(_cache_path(data), json.dumps(list(bad)).encode())


def _cache_path(data: FileDataset) -> Path | None:
    return find_cached(f"checked/{make_decode_key(data)}.json")


def make_decode_key(data: FileDataset) -> str:
    """Return the key of cached results about decoded images; it changes when a file or Pillow's version does."""
    return make_cache_key(f"{data.fingerprint} {PIL.__version__}")


def format_faults(found: Sequence[str]) -> str:
    """Return the first faults, one a line, and the number of the others."""
    more = [f"... and {len(found) - MAX_NAMED} more"] if len(found) > MAX_NAMED else []
    return "\n".join([*found[:MAX_NAMED], *more])
