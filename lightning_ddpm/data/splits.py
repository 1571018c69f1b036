"""Which images of a folder are training images, and which are held out."""

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from lightning_ddpm.data.image_paths import EXTENSIONS, list_images
from lightning_ddpm.utils.errors import UserError

SPLIT_NAMES = {"train": "train", "training": "train"}
SPLIT_NAMES |= dict.fromkeys(("test", "testing"), "test")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
"""The split that a folder of this name is, whatever its case; ``val`` is held out where there is no ``test``."""


def hold_out(n: int, share: float) -> list[int]:
    """Return the indices of a share of n images: floor(share n) of them, or one of at least two, evenly spaced."""
    exact = Fraction(str(share))  # as it is written: in binary, 0.1 is a little more
    ends = [end * exact.numerator // exact.denominator for end in range(n + 1)]
    return [i for i in range(n) if ends[i] < ends[i + 1]] or [n - 1] * (n > 1)


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
