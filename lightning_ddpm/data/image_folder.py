"""Folders of image files: list them, refuse unsafe paths, and report or skip unusable images."""

import os
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_ddpm.data.datasets import FileDataset, ImageDataset, build_path_dataset
from lightning_ddpm.data.sources import ImageSource, Split
from lightning_ddpm.data.validation import find_faults, format_faults
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.paths import printable
from lightning_ddpm.utils.run_files import is_output, is_trajectory, list_outputs

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")
NOT_READ = "the folders of a run and of samples below it are output, which is read only if it is named itself"

SPLIT_NAMES = {"train": "train", "training": "train"}
SPLIT_NAMES |= dict.fromkeys(("test", "testing"), "test")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
"""The split that a folder of this name is, whatever its case; ``val`` is held out where there is no ``test``."""


class ImageFolder(ImageSource):
    """All images in a folder and its subfolders; the subfolders of the first level, if any, are the classes.

    Folders in the root with the name of a split (:data:`SPLIT_NAMES`, in any case) are splits and not classes. Without
    one that is held out, a fraction of the images, evenly spaced over the sorted paths, is held out. Hidden files and
    folders are ignored.

    Args:
        channels: 1 converts every image to grayscale, 3 to RGB.
        size: height and width; the short side of an image is resized and its center cropped. No image is enlarged.
        holdout: fraction of images held out if the folder has no split for that, to one image and at least one.
        on_error: ``refuse`` to start if an image cannot be used, or ``skip`` the image.
        max_skipped: largest fraction of all images that may be skipped.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 64,
        holdout: float = 0.02,
        on_error: Literal["refuse", "skip"] = "refuse",
        max_skipped: float = 0.01,
    ) -> None:
        if channels not in (1, 3):
            raise UserError(f"channels must be 1 (grayscale) or 3 (RGB), got {channels}")
        if not 0 < holdout < 1:
            raise UserError(f"holdout must lie in (0, 1), got {holdout}")
        if not 0 <= max_skipped <= 1:
            raise UserError(f"max_skipped is a fraction of the images and must lie in [0, 1], got {max_skipped}")
        self.channels, self.size, self.holdout = channels, size, holdout
        self.on_error, self.max_skipped = on_error, max_skipped
        self._listed: dict[Path, tuple[list[Path], list[Path]]] = {}  # listing many folders takes seconds

    def prepare(self, root: Path) -> None:
        """Read every image once, until a file changes, and report all images that cannot be used.

        Raises:
            UserError: there are no images, or more unusable ones than may be skipped.
        """
        self._listed.clear()
        skipped: list[Path] = []
        data, parts = self._list_split(Path(root), skipped)
        bad = list(self._find_unusable(data, root).values())
        report(self._describe_splits(Path(root), parts))
        report_skipped(skipped)
        if bad:
            report(f"skipped {len(bad)} of the {len(data)} images in {root} (see check-data):\n{format_faults(bad)}")

    def open(self, root: Path, split: Split) -> ImageDataset:
        data, parts = self._list_split(Path(root))
        bad = self._find_unusable(data, root)
        chosen = [index for index in parts[split] if index not in bad]
        if not chosen:
            splits = find_splits(Path(root))
            folder = (splits.get("train") if split == "train" else _choose_held_out(splits)) or root
            raise UserError(f"{folder} holds no image for the split {split!r}; each split needs at least one")
        return data.subset(chosen)

    def image_files(self, root: Path) -> list[FileDataset]:
        skipped: list[Path] = []
        data, parts = self._list_split(Path(root), skipped)
        report(self._describe_splits(Path(root), parts))
        report_skipped(skipped)
        return [data]

    def class_names(self, root: Path) -> list[str]:
        folder = find_splits(Path(root)).get("train", Path(root))
        return _list_classes(folder, self._list(folder))

    def _list_split(
        self, root: Path, skipped: list[Path] | None = None
    ) -> tuple[FileDataset, dict[Split, Sequence[int]]]:
        """Return the dataset of all images, and the indices of each split in it; see :func:`list_images`."""
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; point data.root at your images")
        splits = find_splits(root)
        folder = splits.get("train", root)
        paths = self._list(folder, skipped)
        classes = {name: label for label, name in enumerate(_list_classes(folder, paths))}
        if other := _choose_held_out(splits):
            rest: Sequence[int] = range(len(paths))
            paths += self._list(other, skipped)
            held_out: Sequence[int] = range(len(rest), len(paths))
        else:
            held_out = hold_out(len(paths), self.holdout)
            rest = sorted(set(range(len(paths))).difference(held_out))
        if not paths:
            raise UserError(
                f"{root} holds no images ({', '.join(EXTENSIONS)}), nor do its subfolders; check data.root; {NOT_READ}"
            )
        depth = len(folder.relative_to(root).parts)
        labels = torch.tensor([classes.get(path.relative_to(root).parts[depth], -1) for path in paths])
        data = build_path_dataset(paths, labels, self.channels, self.size, partial(resolve_inside, root.resolve()))
        return data, {"train": rest, "test": held_out}

    def _describe_splits(self, root: Path, parts: Mapping[Split, Sequence[int]]) -> str:
        """Return a line on where the images of each split come from."""
        splits = find_splits(root)
        other = _choose_held_out(splits)
        unread = [str(each) for each in splits.values() if each not in (splits["train"], other)]
        return (
            f"images: {len(parts['train'])} to train on in {splits.get('train', root)}, {len(parts['test'])} held out "
            + (f"in {other}" if other else f"of the same folder, spread evenly (holdout {self.holdout:g})")
            + "".join(f"; {each} is not read" for each in unread)
        )

    def _list(self, folder: Path, skipped: list[Path] | None = None) -> list[Path]:
        """Return what :func:`list_images` returned at the first call since :meth:`prepare`."""
        if folder not in self._listed:
            outputs: list[Path] = []
            self._listed[folder] = list_images(folder, outputs), outputs
        paths, outputs = self._listed[folder]
        (skipped if skipped is not None else []).extend(outputs)
        return [*paths]

    def _find_unusable(self, data: FileDataset, root: Path) -> dict[int, str]:
        """Return the faults of the images to skip, by index.

        Raises:
            UserError: there are more than may be skipped.
        """
        bad, skip = find_faults(data, str(root)), self.on_error == "skip"
        if len(bad) > (self.max_skipped * len(data) if skip else 0):
            cap = f", more than max_skipped={self.max_skipped:g} of them" if skip else ""
            fix = "raise data.source.max_skipped" if skip else "skip them with --data.source.on_error skip"
            raise UserError(
                f"{len(bad)} of the {len(data)} images in {root} cannot be used{cap}:\n"
                f"{format_faults(list(bad.values()))}\nFix or delete them, or {fix}; check-data lists all of them."
            )
        return bad


def list_images(folder: Path, skipped: list[Path] | None = None, ignored: Collection[str] = ()) -> list[Path]:
    """Return the sorted paths of all images in a folder and its subfolders, without hidden files and folders.

    What commands write is output and never input: the images of a run, a subfolder that ``sample``, ``restore`` or a
    run wrote, overviews and animations (:mod:`lightning_ddpm.utils.run_files`). ``folder`` itself may be of samples.

    Links to folders are not followed; they are among the paths, and :func:`resolve_inside` refuses them.

    Args:
        skipped: subfolders that are output are appended to it.
        ignored: names of subfolders to leave out.

    Raises:
        UserError: a folder cannot be listed.
    """
    found: list[str] = []
    waiting = [os.fspath(folder)]
    try:
        while waiting:
            with os.scandir(here := waiting.pop()) as entries:
                inside = [(entry, entry.is_dir()) for entry in entries]
            files, top = [entry.name for entry, is_folder in inside if not is_folder], here == os.fspath(folder)
            if not top and is_output(files):
                if skipped is not None:
                    skipped.append(Path(here))
                continue
            outputs = {*list_outputs(files), *(ignored if top else ())}
            for entry, is_folder in inside:
                kept = not entry.name.startswith(".") and entry.name not in outputs
                if kept and is_folder and not entry.is_symlink():
                    waiting.append(entry.path)
                elif kept and (is_folder or entry.name.lower().endswith(EXTENSIONS)):
                    found.append(entry.path)
    except OSError as error:
        raise UserError(f"cannot list the folder {here}: {error.strerror}") from error
    paths = (Path(each) for each in sorted(found, key=lambda each: each.split(os.sep)))  # in the order of paths
    return [path for path in paths if not is_trajectory(path)]


def report_skipped(folders: Sequence[Path]) -> None:
    """Print which folders :func:`list_images` did not read, if there are any."""
    if folders:
        report(f"not read: {', '.join(map(str, sorted(folders)[:3]))} ({len(folders)} in all); {NOT_READ}")


def resolve_inside(root: Path, path: Path) -> Path:
    """Return the file that a path resolves to, if it is a file inside the folder.

    Args:
        root: the folder, without links in its path.
        path: path of an image in it.

    Raises:
        UserError: the path is a link out of the folder, to a folder or to nothing, or it is no regular file, or empty.
    """
    try:
        real = path.resolve()
        if not real.is_relative_to(root):
            raise UserError(f"it is a link that leads out of {root}, to {real}; put a copy in its place, or delete it")
        if real.is_dir():
            raise UserError("it is a link to a folder, which is not followed; put a copy in its place, or delete it")
        if not real.exists():
            raise UserError("there is no such file (any more)")
        if not real.is_file():
            raise UserError("it is not a file but a pipe or a device; delete it")
        if not real.stat().st_size:
            raise UserError("the file is empty")
    except (OSError, RuntimeError) as error:  # no permission, or a cycle of links
        raise UserError(first_line(error)) from error
    return real


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


def find_splits(root: Path) -> dict[str, Path]:
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
    if others := list_images(root, ignored={each.name for each in splits.values()}):
        raise UserError(
            f"{root} holds the splits {names} and images outside them, in {others[0].relative_to(root).parts[0]}; move "
            "these into a split, or rename the folders if they are no splits but classes"
        )
    if "train" not in splits:
        raise UserError(
            f"{root} holds the splits {names} and no folder train; add one, or rename them if they are no splits"
        )
    return splits


def _choose_held_out(splits: Mapping[str, Path]) -> Path | None:
    """Return the folder for validation and test: the test split, or else the validation split."""
    return splits.get("test") or splits.get("val")


def _list_classes(folder: Path, paths: Sequence[Path]) -> list[str]:
    names = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    for name in names:
        if printable(name) != name:
            raise UserError(
                f"the class folder {printable(name)} in {folder} has a name that is not UTF-8, and could not be "
                "written into config.yaml; rename it"
            )
    return names
