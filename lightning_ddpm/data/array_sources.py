"""Images in arrays of any type and number of channels: a folder of an array each, or one file of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_ddpm.data.array_files import ArrayDataset, ArrayFileImages, ArrayFolderImages, scan_values
from lightning_ddpm.data.datasets import FileDataset, ImageDataset
from lightning_ddpm.data.folder_listing import FolderListing
from lightning_ddpm.data.image_paths import report_skipped
from lightning_ddpm.data.sources import ImageSource, Split
from lightning_ddpm.data.splits import hold_out
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
    """

    def __init__(
        self,
        low: Numbers | None = None,
        high: Numbers | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        holdout: float = 0.02,
    ) -> None:
        self.low, self.high, self.mean, self.std = low, high, mean, std
        self._files = FolderListing(holdout, (".npy", ".npz", *TIFF))

    def inspect(self, root: Path) -> None:
        self._files.clear()
        images, parts = self._open(root)
        self.channels, self.size = images.shape[0], shorten_size(images.shape[1:])
        declared = choose_values(images.dtype, self.channels, self.low, self.high, self.mean, self.std)
        self.values = scan_values(images, parts["train"], declared, str(root))

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

    def _open(self, root: Path) -> tuple[ArrayFolderImages, dict[str, Sequence[int]]]:
        paths, labels, parts = self._files.list_split(Path(root))
        return ArrayFolderImages(paths, labels), parts

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return self._files.list_class_names(Path(root))


class ArrayFile(ImageSource):
    """One memory-mapped .npy file of images (n, c, h, w) or (n, h, w), in ``data.root``, without labels.

    Its pages are shared by all processes of a machine. Ranges are given or found as in :class:`ArrayFolder`.

    Args:
        file: name of the file in ``data.root``.
        held_out_file: name of a file of the images held out; ``null`` to hold out a fraction of the first one.
        low, high: the range of the values, for all channels or for each.
        mean, std: or their mean and standard deviation.
        holdout: that fraction, evenly spaced, to one image and at least one.
    """

    def __init__(
        self,
        file: str = "train.npy",
        held_out_file: str | None = None,
        low: Numbers | None = None,
        high: Numbers | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        holdout: float = 0.02,
    ) -> None:
        if not 0 < holdout < 1:
            raise UserError(f"holdout must lie in (0, 1), got {holdout}")
        self.file, self.held_out_file, self.holdout = file, held_out_file, holdout
        self.low, self.high, self.mean, self.std = low, high, mean, std

    def inspect(self, root: Path) -> None:
        images, chosen = self._open(root, "train")
        self.channels, self.size = images.shape[0], shorten_size(images.shape[1:])
        declared = choose_values(images.dtype, self.channels, self.low, self.high, self.mean, self.std)
        self.values = scan_values(images, chosen, declared, str(images.path))
        if self.held_out_file:
            other, chosen = self._open(root, "test")
            if (other.shape, other.dtype) != (images.shape, images.dtype):
                raise UserError(
                    f"{other.path} has images of {other.dtype} {other.shape} and {images.path} of {images.dtype} "
                    f"{images.shape}; make them equal"
                )
            scan_values(other, chosen, self.values, str(other.path))

    def prepare(self, root: Path) -> None:
        pass

    def open(self, root: Path, split: Split) -> ImageDataset:
        images, chosen = self._open(root, split)
        return ArrayDataset(images, chosen).in_memory(self.values)

    def _open(self, root: Path, split: Literal["train", "test"]) -> tuple[ArrayFileImages, Sequence[int]]:
        if split == "test" and self.held_out_file:
            images = ArrayFileImages(Path(root) / self.held_out_file)
            return images, range(len(images))
        images = ArrayFileImages(Path(root) / self.file)
        if self.held_out_file:
            return images, range(len(images))
        held_out = hold_out(len(images), self.holdout)
        return images, held_out if split == "test" else sorted(set(range(len(images))).difference(held_out))

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return []
