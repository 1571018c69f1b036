"""Which images of a folder are training images, and which are held out."""

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from lightning_ddpm.data.image_paths import EXTENSIONS, list_images
from lightning_ddpm.utils.errors import UserError

SPLIT_NAMES = {"train": "train", "training": "train"}
SPLIT_NAMES |= dict.fromkeys(("test", "testing"), "test")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
"""The split that a folder of this name is, whatever its case; ``val`` is held out where there is no ``test``."""


def hold_out(n: int, share: float) -> list[int]:
    """Return the indices of a share of n images: floor(share n) of them, or one of at least two, evenly spaced."""
    exact = Fraction(str(share))  # as it is written: in binary, 0.1 is a little more
    counts = range(1, n * exact.numerator // exact.denominator + 1)
    # image i is the one at which floor(share (i + 1)) first reaches a count
    return [-(-count * exact.denominator // exact.numerator) - 1 for count in counts] or [n - 1] * (n > 1)


def split_indices(n: int, holdout: float) -> dict[str, np.ndarray]:
    """Return the indices of the images to train on and of those held out, ``train`` and ``test``, each (k,) int64."""
    held_out = np.array(hold_out(n, holdout), np.int64)
    return {"train": np.delete(np.arange(n), held_out), "test": held_out}


def check_holdout(holdout: float) -> None:
    """Raise a UserError unless a fraction of images to hold out lies in (0, 1)."""
    if not 0 < holdout < 1:
        raise UserError(f"holdout must lie in (0, 1), got {holdout}")


def describe_empty(what: object, split: str) -> str:
    """Return the message for a split without images of the data that ``what`` names."""
    return f"{what} holds no image for the split {split!r}; each split needs at least one"


def list_split_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders in a folder whose names are those of splits, by split.

    Raises:
        UserError: the folder cannot be listed.
    """
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(root) as entries:
            names = sorted(each.name for each in entries if each.name.lower() in SPLIT_NAMES and each.is_dir())
    except OSError as error:
        raise UserError(f"cannot list the folder {root}: {error.strerror}") from error
    for name in names:
        found.setdefault(SPLIT_NAMES[name.lower()], []).append(root / name)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def find_splits(root: Path, extensions: tuple[str, ...] = EXTENSIONS) -> dict[str, Path]:
    """Return the folder of each split (``train``, ``test``, ``val``) in a folder; empty if it has no such folders.

    Raises:
        UserError: two folders are the same split, there are images beside the splits, or there is none to train on.
    """
    found = list_split_folders(root)
    if not found:
        return {}
    for folders in found.values():
        if len(folders) > 1:
            names = " and ".join(each.name for each in folders)
            raise UserError(f"{root} holds {names}, which name the same split; merge them, or rename one")
    splits = {split: folder for split, (folder,) in found.items()}
    names = ", ".join(each.name for each in splits.values())
    if others := list_images(root, ignored={each.name for each in splits.values()}, extensions=extensions):
        raise UserError(
            f"{root} holds the splits {names} and images outside them, in {others[0].relative_to(root).parts[0]}; move "
            "these into a split, or rename the folders if they are no splits but classes"
        )
    if "train" not in splits:
        raise UserError(
            f"{root} holds the splits {names} and no folder train; add one, or rename them if they are no splits"
        )
    return splits


def choose_held_out(splits: Mapping[str, Path]) -> Path | None:
    """Return the folder for validation and test: the test split, or else the validation split."""
    return splits.get("test") or splits.get("val")
