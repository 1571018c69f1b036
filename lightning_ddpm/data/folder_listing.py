"""The files of a folder: which are training images, which are held out, and the class of each."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_ddpm.data.file_table import FileTable
from lightning_ddpm.data.image_paths import EXTENSIONS, NOT_READ
from lightning_ddpm.data.shared_listing import Listing, share_listing
from lightning_ddpm.data.splits import check_holdout, choose_held_out, describe_empty, split_indices
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.paths import printable


class FolderListing:
    """Lists a folder once, until :meth:`clear`, and in a command once for all processes of a machine.

    Args:
        holdout: fraction of images held out if the folder has no split for that, to one image and at least one.
        extensions: of the files.
    """

    def __init__(self, holdout: float, extensions: tuple[str, ...] = EXTENSIONS) -> None:
        check_holdout(holdout)
        self.holdout, self.extensions = holdout, extensions
        self._listed: tuple[Path, Listing] | None = None

    def clear(self) -> None:
        """Forget what was listed, unless by the running command."""
        self._listed = None

    def list_split(
        self, root: Path, skipped: list[Path] | None = None
    ) -> tuple[FileTable, Tensor, dict[str, Sequence[int]]]:
        """Return all paths, their labels, and the indices of each split, ``train`` and ``test``, in them.

        Args:
            root: the folder.
            skipped: subfolders that are output are appended to it; see :func:`list_images`.

        Raises:
            UserError: there is no folder, or no file.
        """
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; point data.root at your images")
        listing = self._list(root)
        paths, folder = listing.train, listing.splits.get("train", root)
        tops = [*_list_tops(paths, folder != root)]
        classes = {name: label for label, name in enumerate(_sort_classes(folder, tops))}
        if listing.held_out is not None:
            rest: Sequence[int] = range(len(paths))
            held_out: Sequence[int] = range(len(paths), len(paths) + len(listing.held_out))
            tops += _list_tops(listing.held_out, True)
            paths = paths + listing.held_out
        else:
            parts = split_indices(len(paths), self.holdout)
            rest, held_out = parts["train"].tolist(), parts["test"].tolist()
        if not paths:
            extensions = ", ".join(self.extensions)
            raise UserError(
                f"{root} holds no images ({extensions}), nor do its subfolders; check data.root; {NOT_READ}"
            )
        if skipped is not None:
            skipped += listing.skipped
        labels = torch.tensor([-1 if top is None else classes.get(top, -1) for top in tops])
        return paths, labels, {"train": rest, "test": held_out}

    def list_class_names(self, root: Path) -> list[str]:
        """Return the names of the first-level subfolders of the training images."""
        listing = self._list(root)
        folder = listing.splits.get("train", root)
        return _sort_classes(folder, _list_tops(listing.train, folder != root))

    def describe_splits(self, root: Path, parts: Mapping[str, Sequence[int]]) -> str:
        """Return a line on where the images of each split come from."""
        splits = self._list(root).splits
        other = choose_held_out(splits)
        return (
            f"images: {len(parts['train'])} to train on in {splits.get('train', root)}, {len(parts['test'])} held out "
            + (f"in {other}" if other else f"of the same folder, spread evenly (holdout {self.holdout:g})")
            + "".join(f"; {each} is not read" for each in self.list_unread(root))
        )

    def list_unread(self, root: Path) -> list[Path]:
        """Return the folders of splits that are neither trained on nor held out."""
        splits = self._list(root).splits
        return [each for each in splits.values() if each not in (splits["train"], choose_held_out(splits))]

    def describe_empty(self, root: Path, split: str) -> str:
        """Return the message for a split without images."""
        splits = self._list(root).splits
        folder = (splits.get("train") if split == "train" else choose_held_out(splits)) or root
        return describe_empty(folder, split)

    def _list(self, root: Path) -> Listing:
        """Return what :func:`share_listing` returned at the first call."""
        if self._listed is None or self._listed[0] != root:
            self._listed = root, share_listing(root, self.extensions)
        return self._listed[1]


def _list_tops(files: FileTable, in_split: bool) -> Iterator[str | None]:
    """Yield the first-level folder that each file is in, which may be in that of a split; ``None`` for no such one."""
    depth = int(in_split)
    for name in files.iterate_names():
        parts = name.split(os.sep, depth + 1)
        yield parts[depth] if len(parts) > depth + 1 else None


def _sort_classes(folder: Path, tops: Iterable[str | None]) -> list[str]:
    names = sorted({each for each in tops if each is not None})
    for name in names:
        if printable(name) != name:
            raise UserError(
                f"the class folder {printable(name)} in {folder} has a name that is not UTF-8, and could not be "
                "written into config.yaml; rename it"
            )
    return names
