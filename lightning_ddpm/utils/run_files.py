"""The files that commands write: which of them show that a folder holds a run, and which are never input."""

import os
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path

CONFIG, PREDICTIONS, SNAPSHOTS = "config.yaml", "predictions", "snapshots"
UNSAVED = ".unsaved"
"""A run's file until its first checkpoint is written; it holds the path of the checkpoint that the run started from."""
MANIFEST = "set.json"
"""Holds what the images of ``sample`` and ``restore`` beside it depend on: checkpoint, sampler, seed, ..."""

CHECKPOINTS = ("last.ckpt", "last-previous.ckpt", "best.ckpt", "best-previous.ckpt", ".last.ckpt.before")
EVENTS = "events.out.tfevents.*"
GRID, SIDE_BY_SIDE = "grid.png", "side_by_side.png"
OVERVIEWS = (GRID, SIDE_BY_SIDE)
"""Images of many images."""
TRAJECTORY = b"lightning_ddpm trajectory"
"""The comment in the animations of ``sample``, which may have any name."""

_PLOTS = "*_bits_per_dim.png"
_ANYWHERE = (EVENTS, "metrics.csv", "hparams.yaml", "epoch=*.ckpt", "run-*.wandb")
_AT_THE_TOP = (CONFIG, UNSAVED, "*.ckpt", ".last.ckpt.before", _PLOTS)
_FOLDERS = ("samples", PREDICTIONS, SNAPSHOTS)
_DEPTH = 3
"""Loggers write at most this many folders below the run's: NAME/VERSION/PART."""


def find_run_file(folder: Path, ignored: Path | None = None) -> Path | None:
    """Return a file of a run in a folder, or in the folders of loggers and images below it; ``None`` without one.

    Args:
        folder: where to look; it need not exist.
        ignored: a checkpoint that is no sign of a run.
    """
    known = ignored and ignored.resolve()
    return next((each for each in _walk_run(folder) if each.resolve() != known), None)


def remove_run_files(folder: Path) -> None:
    """Delete the files of a run that was refused or failed at its first step; checkpoints are none of them."""
    for each in [each for each in _walk_run(folder) if each.suffix != ".ckpt"]:
        each.unlink(missing_ok=True)


def find_checkpoint(folder: Path) -> Path | None:
    """Return a checkpoint of the run in a folder, also in the folders of other callbacks; ``None`` without one."""
    return next((each for each in _walk_run(folder) if each.suffix == ".ckpt"), None)


def _walk_run(folder: Path) -> Iterator[Path]:
    """Yield the files of the run in a folder, its checkpoints first."""
    for here, folders, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < _DEPTH else []
        if depth and _marks_run(files):  # another run, with files of its own
            folders[:] = []
            continue
        written = depth == 1 and Path(here).name in _FOLDERS
        patterns = (*_ANYWHERE, *(() if depth else _AT_THE_TOP), *(("*.png", "step-*.pt") if written else ()))
        known = [name for name in CHECKPOINTS if name in files]
        for name in dict.fromkeys([*known, *sorted(files, key=lambda name: (not name.endswith(".ckpt"), name))]):
            if any(fnmatch(name, each) for each in patterns):
                yield Path(here, name)


def is_output(names: Collection[str]) -> bool:
    """Return whether a folder with files of these names was written by a command: by ``fit``, ``sample``, ..."""
    return _marks_run(names) or MANIFEST in names or any(fnmatch(name, EVENTS) for name in names)


def list_outputs(names: Collection[str]) -> set[str]:
    """Return the names of what is never input in a folder with files of these names: overviews, and a run's images."""
    plots = {name for name in names if fnmatch(name, _PLOTS)}
    return {*OVERVIEWS, *(_FOLDERS if is_output(names) and MANIFEST not in names else ()), *plots}


def is_trajectory(path: Path) -> bool:
    """Return whether a file is an animation of ``sample``, whose comment stands behind its first table of colours."""
    if path.suffix.lower() != ".gif":
        return False
    try:
        with path.open("rb") as file:
            return TRAJECTORY in file.read(1024)
    except OSError:
        return False


def _marks_run(names: Collection[str]) -> bool:
    return UNSAVED in names or any(name in names for name in CHECKPOINTS)
