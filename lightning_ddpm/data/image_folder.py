"""Folders of image files: their classes and splits, and what happens to unusable images."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from lightning_ddpm.data.datasets import FileDataset, ImageDataset, build_path_dataset
from lightning_ddpm.data.image_paths import EXTENSIONS, NOT_READ, list_images, report_skipped, resolve_inside
from lightning_ddpm.data.sources import ImageSource, Split
from lightning_ddpm.data.splits import choose_held_out, find_splits, hold_out
from lightning_ddpm.data.validation import find_faults, format_faults
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize
from lightning_ddpm.utils.paths import printable


class ImageFolder(ImageSource):
    """All images in a folder and its subfolders; the subfolders of the first level, if any, are the classes.

    Folders in the root with the name of a split (:data:`~lightning_ddpm.data.splits.SPLIT_NAMES`, in any case) are
    splits and not classes. Without one that is held out, a fraction of the images, evenly spaced over the sorted paths,
    is held out. Hidden files and folders are ignored.

    Args:
        channels: 1 converts every image to grayscale, 3 to RGB.
        size: height and width: one number for squares, or ``[height, width]``. An image is resized to the smallest that
            covers them, and its center is cropped. No image is enlarged.
        holdout: fraction of images held out if the folder has no split for that, to one image and at least one.
        on_error: ``refuse`` to start if an image cannot be used, or ``skip`` the image.
        max_skipped: largest fraction of all images that may be skipped.
    """

    def __init__(
        self,
        channels: int = 3,
        size: ImageSize = 64,
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
            folder = (splits.get("train") if split == "train" else choose_held_out(splits)) or root
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
        if other := choose_held_out(splits):
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
        other = choose_held_out(splits)
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
        if skipped is not None:
            skipped += outputs
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


def _list_classes(folder: Path, paths: Sequence[Path]) -> list[str]:
    names = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    for name in names:
        if printable(name) != name:
            raise UserError(
                f"the class folder {printable(name)} in {folder} has a name that is not UTF-8, and could not be "
                "written into config.yaml; rename it"
            )
    return names
