"""List a folder once for all processes that a command starts on a machine."""

import io
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_ddpm.data.file_table import FileTable
from lightning_ddpm.data.image_paths import tabulate_images
from lightning_ddpm.data.splits import choose_held_out, find_splits
from lightning_ddpm.utils.cache import find_cached, read_cached, report_unusable, write_cached
from lightning_ddpm.utils.command_start import get_start
from lightning_ddpm.utils.hashing import make_cache_key
from lightning_ddpm.utils.locks import wait_for_folder

FILE = "files.npz"
SHARED_FILES = 10_000
"""Number of files from which a listing is written for the other processes; to list fewer takes less time."""


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
        splits: the folder of each split in it; see :func:`~lightning_ddpm.data.splits.find_splits`.
        train: the images to train on, or all if none are held out by a split.
        held_out: the images held out by a split; ``None`` without one.
        skipped: subfolders that are output.
    """

    splits: dict[str, Path]
    train: FileTable
    held_out: FileTable | None
    skipped: list[Path]


def share_listing(root: Path, extensions: tuple[str, ...]) -> Listing:
    """Return the images of a folder, listed by this process or by another one of the same command.

    Outside of a command the folder is listed.

    Args:
        root: the folder.
        extensions: of the files.

    Raises:
        UserError: a folder cannot be listed, or its splits are not clear.
    """
    start, key = get_start(), (os.fspath(root.absolute()), extensions)
    if start is None:
        return _list(root, extensions)
    if _LISTED and next(iter(_LISTED.values()))[0] != start:  # of an earlier command in the same process
        _LISTED.clear()
    if key not in _LISTED:
        _LISTED[key] = start, _list_together(root, extensions, find_cached(f"listed/{make_cache_key(str(key))}"))
    return _LISTED[key][1]


_LISTED: dict[tuple[str, tuple[str, ...]], tuple[float, Listing]] = {}
"""Start of the command and what it listed."""


def _list_together(root: Path, extensions: tuple[str, ...], place: Path | None) -> Listing:
    """Read what another process has listed, or list the folder while the others wait."""
    if place is None:
        return _list(root, extensions)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with wait_for_folder(place, f"the list of {root}"):
            if (found := _read(place / FILE, root)) is not None:
                return found
            now = time.time()
            listing = _list(root, extensions)
            if len(listing.train) >= SHARED_FILES:
                _write(place / FILE, listing, now)
            return listing
    except OSError as error:
        report_unusable(str(place.parent.parent), error.strerror or str(error))
        return _list(root, extensions)


def _list(root: Path, extensions: tuple[str, ...]) -> Listing:
    splits, skipped = find_splits(root, extensions), list[Path]()
    train = tabulate_images(splits.get("train", root), root, skipped, extensions)
    other = choose_held_out(splits)
    held_out = tabulate_images(other, root, skipped, extensions) if other else None
    return Listing(splits, train, held_out, skipped)


def _write(path: Path, listing: Listing, now: float) -> None:
    files = listing.train if listing.held_out is None else listing.train + listing.held_out
    facts = {
        "time": now,
        "train": -1 if listing.held_out is None else len(listing.train),
        "splits": {name: each.name for name, each in listing.splits.items()},
        "skipped": [os.fspath(each) for each in listing.skipped],
    }
    content = io.BytesIO()
    arrays = {"names": files.names, "ends": files.ends, "stats": files.stats}
    np.savez(content, **arrays, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8))  # type: ignore[arg-type]
    write_cached(path, content.getvalue())


def _read(path: Path, root: Path) -> Listing | None:
    """Return what was listed since the command began; ``None`` for nothing."""
    start = get_start()
    try:
        if start is None or path.stat().st_mtime < start - 1:  # before all of it is read
            return None
    except OSError:
        return None
    if (content := read_cached(path)) is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        if facts["time"] < start:
            return None
        files = FileTable(root, arrays["names"], arrays["ends"], arrays["stats"])
    splits, skipped = {name: root / each for name, each in facts["splits"].items()}, [*map(Path, facts["skipped"])]
    if facts["train"] < 0:
        return Listing(splits, files, None, skipped)
    return Listing(splits, *files.divide(facts["train"]), skipped)
