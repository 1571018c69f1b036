"""Folders of image files: their classes and splits, and what happens to unusable images."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from lightning_ddpm.data.datasets import FileDataset, ImageDataset, build_path_dataset
from lightning_ddpm.data.folder_listing import FolderListing
from lightning_ddpm.data.image_paths import report_skipped, resolve_inside
from lightning_ddpm.data.missing import Missing, measure_valid, pool_valid
from lightning_ddpm.data.sources import ImageSource, Split
from lightning_ddpm.data.validation import find_faults, format_faults, make_decode_key, read_all
from lightning_ddpm.data.value_options import (
    Numbers,
    choose_values,
    make_unbounded,
    measure_channels,
    pool_channels,
    standardise,
)
from lightning_ddpm.data.value_range import DTYPES, ValueRange
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize


class ImageFolder(ImageSource):
    """All images in a folder and its subfolders; the subfolders of the first level, if any, are the classes.

    Folders in the root with the name of a split (:data:`~lightning_ddpm.data.splits.SPLIT_NAMES`, in any case) are
    splits and not classes. Without one that is held out, a fraction of the images, evenly spaced over the sorted paths,
    is held out. Hidden files and folders are ignored.

    Images of 8 bits are converted to gray or RGB. Values of another ``dtype`` or number of channels, and those whose
    range is given, are kept as they are: of TIFF files (by tifffile), PNG files of 16 bits, and files without a palette
    that Pillow reads.

    Args:
        channels: 1 converts every image to grayscale, 3 to RGB; where values are kept, the images must have as many.
        size: height and width: one number for squares, or ``[height, width]``. An image is resized to the smallest that
            covers them, and its center is cropped. No image is enlarged.
        holdout: fraction of images held out if the folder has no split for that, to one image and at least one.
        on_error: ``refuse`` to start if an image cannot be used, or ``skip`` the image.
        max_skipped: largest fraction of all images that may be skipped.
        dtype: type of the values in the files, such as ``uint16`` or ``float32``.
        low, high: the range of the values, for all channels or for each; by default that of an integer type of 8 or 16
            bits.
        mean, std: or their mean and standard deviation; by default of other types, those of each channel over the
            training images.
        nan: for floats, as in :class:`~lightning_ddpm.data.array_sources.ArrayFolder`; images with NaN are not
            resized.
    """

    def __init__(
        self,
        channels: int = 3,
        size: ImageSize = 64,
        holdout: float = 0.02,
        on_error: Literal["refuse", "skip"] = "refuse",
        max_skipped: float = 0.01,
        dtype: str = "uint8",
        low: Numbers | None = None,
        high: Numbers | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        nan: Missing = "refuse",
    ) -> None:
        if channels < 1:
            raise UserError(f"channels must be at least 1, got {channels}")
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
        if not 0 <= max_skipped <= 1:
            raise UserError(f"max_skipped is a fraction of the images and must lie in [0, 1], got {max_skipped}")
        self.channels, self.size, self.holdout = channels, size, holdout
        self._files = FolderListing(holdout)
        self.on_error, self.max_skipped = on_error, max_skipped
        masked = nan == "mask"
        self._declared = choose_values(dtype, channels, low, high, mean, std, masked)
        # any range of the type will do to read images whose statistics are yet to be measured
        self.values = self._declared or make_unbounded(dtype, 0.0, 1.0, masked)

    def inspect(self, root: Path) -> None:
        if self._declared is None:
            self.values = self._measure(Path(root), make_unbounded(self.values.dtype, 0.0, 1.0, self.values.masked))

    def _measure(self, root: Path, unknown: ValueRange) -> ValueRange:
        """Return mean and standard deviation of each channel over the training images that can be used."""
        self.values = unknown
        data, parts = self._list_split(root)
        bad = self._find_unusable(data, root)
        training = data.subset([index for index in parts["train"] if index not in bad])
        if not len(training):
            raise UserError(self._files.describe_empty(root, "train"))
        path = find_cached(f"values/{make_decode_key(training)}.json")
        if (cached := read_cached(path)) is not None:
            mean, std = json.loads(cached)
        else:
            read = read_all(training, f"measuring {root}", len(training) > 5000)
            images = (each.pixels.numpy() for each in read if not isinstance(each, str))
            if unknown.masked:
                mean, std = pool_valid([*map(measure_valid, images)], str(root))
            else:
                mean, std = pool_channels([*map(measure_channels, images)])
            write_cached(path, json.dumps([mean, std]).encode())
        return standardise(unknown.dtype, mean, std, str(root), unknown.masked)

    def prepare(self, root: Path) -> None:
        """Read every image once, until a file changes, and report all images that cannot be used.

        Raises:
            UserError: there are no images, or more unusable ones than may be skipped.
        """
        self._files.clear()
        skipped: list[Path] = []
        data, parts = self._list_split(Path(root), skipped)
        bad = list(self._find_unusable(data, root).values())
        report(self._files.describe_splits(Path(root), parts))
        report_skipped(skipped)
        if bad:
            report(f"skipped {len(bad)} of the {len(data)} images in {root} (see check-data):\n{format_faults(bad)}")

    def open(self, root: Path, split: Split) -> ImageDataset:
        data, parts = self._list_split(Path(root))
        bad = self._find_unusable(data, root)
        chosen = [index for index in parts[split] if index not in bad]
        if not chosen:
            raise UserError(self._files.describe_empty(Path(root), split))
        return data.subset(chosen)

    def open_all(self, root: Path) -> ImageDataset:
        """Open the images of all splits together."""
        data, _ = self._list_split(Path(root))
        bad = self._find_unusable(data, root)
        return data.subset([index for index in range(len(data)) if index not in bad])

    def image_files(self, root: Path) -> list[FileDataset]:
        skipped: list[Path] = []
        data, parts = self._list_split(Path(root), skipped)
        report(self._files.describe_splits(Path(root), parts))
        report_skipped(skipped)
        return [data]

    def class_names(self, root: Path) -> list[str]:
        return self._files.list_class_names(Path(root))

    def _list_split(
        self, root: Path, skipped: list[Path] | None = None
    ) -> tuple[FileDataset, dict[str, Sequence[int]]]:
        """Return the dataset of all images, and the indices of each split in it."""
        paths, labels, parts = self._files.list_split(root, skipped)
        inside = partial(resolve_inside, root.resolve())
        data = build_path_dataset(paths, labels, self.channels, self.size, inside, self.values)
        return data, parts

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
