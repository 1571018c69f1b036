"""The files of a folder: which are training images, which are held out, and the class of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_ddpm.data.image_paths import EXTENSIONS, NOT_READ, list_images
from lightning_ddpm.data.splits import choose_held_out, find_splits, hold_out
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.paths import printable


class FolderListing:
    """Lists a folder once, until :meth:`clear`: listing many folders takes seconds.

    Args:
        holdout: fraction of images held out if the folder has no split for that, to one image and at least one.
        extensions: of the files.
    """

    def __init__(self, holdout: float, extensions: tuple[str, ...] = EXTENSIONS) -> None:
        if not 0 < holdout < 1:
            raise UserError(f"holdout must lie in (0, 1), got {holdout}")
        self.holdout, self.extensions = holdout, extensions
        self._listed: dict[Path, tuple[list[Path], list[Path]]] = {}

    def clear(self) -> None:
        """Forget what was listed."""
        self._listed.clear()

    def list_split(
        self, root: Path, skipped: list[Path] | None = None
    ) -> tuple[list[Path], Tensor, dict[str, Sequence[int]]]:
        """Return all paths, their labels, and the indices of each split, ``train`` and ``test``, in them.

        Args:
            root: the folder.
            skipped: subfolders that are output are appended to it; see :func:`list_images`.

        Raises:
            UserError: there is no folder, or no file.
        """
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; point data.root at your images")
        splits = find_splits(root, self.extensions)
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
            extensions = ", ".join(self.extensions)
            raise UserError(
                f"{root} holds no images ({extensions}), nor do its subfolders; check data.root; {NOT_READ}"
            )
        depth = len(folder.relative_to(root).parts)
        labels = torch.tensor([classes.get(path.relative_to(root).parts[depth], -1) for path in paths])
        return paths, labels, {"train": rest, "test": held_out}

    def list_class_names(self, root: Path) -> list[str]:
        """Return the names of the first-level subfolders of the training images."""
        folder = find_splits(root, self.extensions).get("train", root)
        return _list_classes(folder, self._list(folder))

    def describe_splits(self, root: Path, parts: Mapping[str, Sequence[int]]) -> str:
        """Return a line on where the images of each split come from."""
        splits = find_splits(root, self.extensions)
        other = choose_held_out(splits)
        unread = [str(each) for each in splits.values() if each not in (splits["train"], other)]
        return (
            f"images: {len(parts['train'])} to train on in {splits.get('train', root)}, {len(parts['test'])} held out "
            + (f"in {other}" if other else f"of the same folder, spread evenly (holdout {self.holdout:g})")
            + "".join(f"; {each} is not read" for each in unread)
        )

    def describe_empty(self, root: Path, split: str) -> str:
        """Return the message for a split without images."""
        splits = find_splits(root, self.extensions)
        folder = (splits.get("train") if split == "train" else choose_held_out(splits)) or root
        return f"{folder} holds no image for the split {split!r}; each split needs at least one"

    def _list(self, folder: Path, skipped: list[Path] | None = None) -> list[Path]:
        """Return what :func:`list_images` returned at the first call."""
        if folder not in self._listed:
            outputs: list[Path] = []
            self._listed[folder] = list_images(folder, outputs, extensions=self.extensions), outputs
        paths, outputs = self._listed[folder]
        if skipped is not None:
            skipped += outputs
        return [*paths]


def _list_classes(folder: Path, paths: Sequence[Path]) -> list[str]:
    names = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    for name in names:
        if printable(name) != name:
            raise UserError(
                f"the class folder {printable(name)} in {folder} has a name that is not UTF-8, and could not be "
                "written into config.yaml; rename it"
            )
    return names
