"""Images in arrays of any type and number of channels: a folder of an array each, or one file of all."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from lightning_ddpm.data.array_files import ArrayDataset, ArrayFolderImages, scan_values
from lightning_ddpm.data.array_stores import ArrayFileImages
from lightning_ddpm.data.datasets import FileDataset, ImageDataset
from lightning_ddpm.data.folder_listing import FolderListing
from lightning_ddpm.data.image_paths import report_skipped, resolve_inside
from lightning_ddpm.data.missing import Missing
from lightning_ddpm.data.sources import SPLITS, ImageSource, Split
from lightning_ddpm.data.splits import check_holdout, describe_empty, split_indices
from lightning_ddpm.data.tiff import TIFF
from lightning_ddpm.data.value_options import Numbers, choose_values
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import shorten_size


class ArrayFolder(ImageSource):
    """All .npy, .npz and TIFF files in a folder and its subfolders, an image (c, h, w) or (h, w) in each, of one type.

    Channels, size and type are those of the files; splits and classes are as in
    :class:`~lightning_ddpm.data.image_folder.ImageFolder`. Arrays are not resized. Unless a range is given, integers of
    8 and 16 bits have that of their type, and other values the mean and standard deviation of each channel over the
    training images. All files are read once, until one of them changes.

    Args:
        low, high: the range of the values, for all channels or for each.
        mean, std: or their mean and standard deviation.
        holdout: fraction of images held out if the folder has no split for that, to one image and at least one.
        nan: ``refuse`` to start if floats have NaN, or ``mask`` these values, which the loss then leaves out; the
            network is given the mask by :class:`~lightning_ddpm.networks.ConcatenatedMask`.
    """

    def __init__(
        self,
        low: Numbers | None = None,
        high: Numbers | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        holdout: float = 0.02,
        nan: Missing = "refuse",
    ) -> None:
        self.low, self.high, self.mean, self.std, self.masked = low, high, mean, std, nan == "mask"
        self._files = FolderListing(holdout, (".npy", ".npz", *TIFF))

    def inspect(self, root: Path) -> None:
        self._files.clear()
        images, parts = self._open(root)
        if not parts["train"]:
            raise UserError(self._files.describe_empty(Path(root), "train"))
        self.channels, self.size = images.shape[0], shorten_size(images.shape[1:])
        declared = choose_values(images.dtype, self.channels, self.low, self.high, self.mean, self.std, self.masked)
        self.values = scan_values(images, parts["train"], declared, str(root), self.masked)

    def prepare(self, root: Path) -> None:
        skipped: list[Path] = []
        _, _, parts = self._files.list_split(Path(root), skipped)
        report(self._files.describe_splits(Path(root), parts))
        report_skipped(skipped)

    def open(self, root: Path, split: Split) -> ImageDataset:
        images, parts = self._open(root)
        if not parts[split]:
            raise UserError(self._files.describe_empty(Path(root), split))
        return ArrayDataset(images, parts[split]).in_memory(self.values)

    def open_all(self, root: Path) -> ImageDataset:
        """Open the images of all splits together."""
        images, _ = self._open(root)
        return ArrayDataset(images, range(len(images))).in_memory(self.values)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Those of the files that are read."""
        return self._files.extensions

    def _open(self, root: Path) -> tuple[ArrayFolderImages, dict[str, Sequence[int]]]:
        paths, labels, parts = self._files.list_split(Path(root))
        return ArrayFolderImages(paths, labels, partial(resolve_inside, Path(root).resolve())), parts

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return self._files.list_class_names(Path(root))


class ArrayFile(ImageSource):
    """One file of images (n, c, h, w) or (n, h, w), in ``data.root``: .npy, HDF5 or zarr.

    A .npy file is mapped into memory, and its pages are shared by all processes of a machine. Ranges are given or found
    as in :class:`ArrayFolder`.

    Args:
        file: name of the file in ``data.root``.
        held_out_file: name of a file of the images held out; ``null`` to hold out a fraction of the first one.
        key: name of the array in an HDF5 file or a zarr group; ``null`` for the only one.
        labels: name of an array of classes (n,), numbers from 0: in the HDF5 or zarr file, or a .npy file beside it.
        held_out_labels: the same for ``held_out_file``; not needed if its array, or the file beside it, has that name.
        classes: names of the classes; ``null`` for their numbers.
        low, high: the range of the values, for all channels or for each.
        mean, std: or their mean and standard deviation.
        holdout: that fraction, evenly spaced, to one image and at least one.
        nan: as in ``ArrayFolder``.
    """

    def __init__(
        self,
        file: str = "train.npy",
        held_out_file: str | None = None,
        key: str | None = None,
        labels: str | None = None,
        held_out_labels: str | None = None,
        classes: list[str] | None = None,
        low: Numbers | None = None,
        high: Numbers | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        holdout: float = 0.02,
        nan: Missing = "refuse",
    ) -> None:
        check_holdout(holdout)
        if classes is not None and labels is None:
            raise UserError("data.source.classes names the classes in data.source.labels, which is not given")
        if held_out_file == file:
            raise UserError(
                f"{file} is both data.source.file and held_out_file; name another one, or leave held_out_file out"
            )
        beside = held_out_file and Path(held_out_file).parent == Path(file).parent
        if beside and labels and labels.endswith(".npy") and held_out_labels in (None, labels):
            raise UserError(
                f"{labels} holds the classes of {file}; name those of {held_out_file} in data.source.held_out_labels"
            )
        self.file, self.held_out_file, self.holdout = file, held_out_file, holdout
        self.key, self.labels, self.held_out_labels, self.classes = key, labels, held_out_labels or labels, classes
        self.low, self.high, self.mean, self.std, self.masked = low, high, mean, std, nan == "mask"

    def inspect(self, root: Path) -> None:
        images, chosen = self._open(root, "train")
        self.channels, self.size = images.shape[0], shorten_size(images.shape[1:])
        declared = choose_values(images.dtype, self.channels, self.low, self.high, self.mean, self.std, self.masked)
        self.values = scan_values(images, chosen, declared, str(images.path), self.masked)
        if self.held_out_file:
            other, chosen = self._open(root, "test")
            if (other.shape, other.dtype) != (images.shape, images.dtype):
                raise UserError(
                    f"{other.path} has images of {other.dtype} {other.shape} and {images.path} of {images.dtype} "
                    f"{images.shape}; make them equal"
                )
            scan_values(other, chosen, self.values, str(other.path), self.masked)

    def prepare(self, root: Path) -> None:
        pass

    def open(self, root: Path, split: Split) -> ImageDataset:
        images, chosen = self._open(root, split)
        if not chosen:
            raise UserError(describe_empty(images.path, split))
        return ArrayDataset(images, chosen).in_memory(self.values)

    def _open(self, root: Path, split: Literal["train", "test"]) -> tuple[ArrayFileImages, Sequence[int]]:
        if split == "test" and self.held_out_file:
            images = ArrayFileImages(Path(root) / self.held_out_file, self.key, self.held_out_labels)
            return images, range(len(images))
        images = ArrayFileImages(Path(root) / self.file, self.key, self.labels)
        if self.held_out_file:
            return images, range(len(images))
        return images, split_indices(len(images), self.holdout)[split].tolist()

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        if self.labels is None:
            return []
        parts = [self._open(root, split)[0].labels for split in SPLITS]
        greatest = max(int(each.max()) for each in parts)
        if self.classes is None:
            return [str(label) for label in range(greatest + 1)]
        if greatest >= len(self.classes):
            raise UserError(f"the images have the class {greatest}, and data.source.classes {len(self.classes)} names")
        return list(self.classes)
