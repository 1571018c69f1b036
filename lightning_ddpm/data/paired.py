"""Sources of pairs: an image that is given, and the one that is to be generated from it.

Saharia et al. 2021 (SR3, arXiv:2104.07636) and 2022 (Palette, arXiv:2111.05826) train restoration on pairs.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.datasets import FileDataset, ImageDataset, build_path_dataset
from lightning_ddpm.data.folder_listing import FolderListing
from lightning_ddpm.data.image_io import check_channels, read_upright_size
from lightning_ddpm.data.image_paths import list_images, report_skipped, resolve_inside
from lightning_ddpm.data.missing import require_complete
from lightning_ddpm.data.sources import ImageSource, Split
from lightning_ddpm.data.validation import find_faults, format_faults
from lightning_ddpm.utils.condition import ConditionFormat
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, format_size, get_sides
from lightning_ddpm.utils.paths import printable


@dataclass(frozen=True)
class BlockMeans:
    """Maps images (b, c, h, w) to the means of their blocks of factor x factor pixels, in their own type."""

    factor: int

    def __call__(self, images: Tensor) -> Tensor:
        means = functional.avg_pool2d(images.double(), self.factor)
        return (means if images.is_floating_point() else means.round()).to(images.dtype)


class Downscaled(ImageSource):
    """Images of another source, each given the means of its blocks of pixels: for super-resolution.

    Args:
        source: the images.
        factor: height and width of a block.
    """

    def __init__(self, source: ImageSource, factor: int = 2) -> None:
        if factor < 2:
            raise UserError(f"factor must be at least 2, got {factor}")
        self.source, self.factor = source, factor

    def inspect(self, root: Path) -> None:
        source = self.source
        source.inspect(root)
        self.channels, self.size, self.values = source.channels, source.size, source.values
        require_complete(self.values, "Downscaled")
        height, width = get_sides(self.size)
        if height % self.factor or width % self.factor:
            raise UserError(
                f"images of {format_size(self.size)} are not divided by data.source.factor {self.factor}; change "
                "one of them"
            )
        if source.condition.kinds:
            raise UserError(
                f"the images are conditioned on {source.condition.describe()} already; give their source alone"
            )
        self.condition = ConditionFormat(image=(self.channels, height // self.factor, width // self.factor))
        self.condition_values = self.values

    def prepare(self, root: Path) -> None:
        self.source.prepare(root)

    def open(self, root: Path, split: Split) -> ImageDataset:
        return ConditionedDataset(self.source.open(root, split), derive=BlockMeans(self.factor))

    def image_files(self, root: Path) -> list[FileDataset]:
        return self.source.image_files(root)

    def class_names(self, root: Path) -> list[str]:
        return self.source.class_names(root)


class PairedFolders(ImageSource):
    """Pairs of images in two folders of ``data.root``: those that are given, and those that are to be generated.

    A pair has one name, such as ``input/a/7.jpg`` and ``target/a/7.png``; its two images show the same, and have one
    ratio of height to width. Splits and classes are those of the targets, as in
    :class:`~lightning_ddpm.data.image_folder.ImageFolder`. Images are resized and cropped as there.

    Args:
        channels: of the targets; 1 converts every image to grayscale, 3 to RGB.
        size: height and width of the targets.
        given_channels, given_size: of the images that are given; ``null`` for those of the targets.
        given, target: names of the folders.
        holdout: fraction of pairs held out if the targets have no split for that, to one image and at least one.
    """

    def __init__(
        self,
        channels: int = 3,
        size: ImageSize = 64,
        given_channels: int | None = None,
        given_size: ImageSize | None = None,
        given: str = "input",
        target: str = "target",
        holdout: float = 0.02,
    ) -> None:
        given_channels, given_size = given_channels or channels, given_size or size
        check_channels(channels, given_channels)
        self.channels, self.size, self.given, self.target = channels, size, given, target
        self.given_channels, self.given_size = given_channels, given_size
        self.condition = ConditionFormat(image=(given_channels, *get_sides(given_size)))
        self._targets = FolderListing(holdout)

    def prepare(self, root: Path) -> None:
        """Read every image once, until a file changes.

        Raises:
            UserError: an image has no partner, cannot be used, or shows another part than its partner.
        """
        self._targets.clear()
        skipped: list[Path] = []
        targets, given, parts = self._list(Path(root), skipped)
        report(self._targets.describe_splits(Path(root) / self.target, parts))
        report_skipped(skipped)
        faults = [each for data in (targets, given) for each in find_faults(data, str(root)).values()]
        faults = faults or _find_unequal(targets, given)
        if faults:
            raise UserError(
                f"{len(faults)} of the {len(targets)} pairs in {root} cannot be used:\n{format_faults(faults)}\n"
                "Fix or delete them."
            )

    def open(self, root: Path, split: Split) -> ImageDataset:
        targets, given, parts = self._list(Path(root))
        if not parts[split]:
            raise UserError(self._targets.describe_empty(Path(root) / self.target, split))
        return ConditionedDataset(targets.subset(parts[split]), pairs=given.subset(parts[split]))

    def image_files(self, root: Path) -> list[FileDataset]:
        return list(self._list(Path(root))[:2])

    def class_names(self, root: Path) -> list[str]:
        return self._targets.list_class_names(Path(root) / self.target)

    def _list(
        self, root: Path, skipped: list[Path] | None = None
    ) -> tuple[FileDataset, FileDataset, dict[str, Sequence[int]]]:
        """Return the targets, their partners in the same order, and the indices of each split."""
        folders = {name: root / name for name in (self.given, self.target)}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise UserError(
                    f"{root} has no folder {name}; pairs are in {self.given} and {self.target}, and data.source.given "
                    "and target rename them"
                )
        targets, labels, parts = self._targets.list_split(folders[self.target], skipped)
        unread = [each.name for each in self._targets.list_unread(folders[self.target])]
        names = _list_names(targets, folders[self.target])
        given = list_images(folders[self.given], skipped, unread)
        partners = dict(zip(_list_names(given, folders[self.given]), given, strict=True))
        alone = [f"{self.target}/{printable(name)} has none in {self.given}" for name in names if name not in partners]
        others = sorted(partners.keys() - set(names))
        alone += [f"{self.given}/{printable(name)} has none in {self.target}" for name in others]
        if alone:
            raise UserError(
                f"{len(alone)} images in {root} have no partner of the same name:\n{format_faults(alone)}\n"
                "Add the missing ones, or delete these."
            )
        sizes = (self.channels, self.size), (self.given_channels, self.given_size)
        lists = targets, [partners[name] for name in names]
        data = [
            build_path_dataset(paths, each, *shape, partial(resolve_inside, folders[name].resolve()))
            for paths, each, shape, name in zip(
                lists, (labels, torch.full_like(labels, -1)), sizes, (self.target, self.given), strict=True
            )
        ]
        return data[0], data[1], parts


def _list_names(paths: Iterable[Path], folder: Path) -> list[str]:
    """Return the names of the pairs that images belong to; UserError if two images of the folder have the same."""
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    if twice := [printable(name) for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{folder} holds several images of one name, which differ in their extension alone:\n"
            f"{format_faults(twice)}\nKeep one of each."
        )
    return names


def _find_unequal(targets: FileDataset, given: FileDataset) -> list[str]:
    """Return the pairs whose images have different ratios of height to width, by more than a pixel's rounding."""
    faults = []
    for index in range(len(targets)):
        (width, height), (other_width, other_height) = (
            read_upright_size(each.file(index)) for each in (targets, given)
        )
        if abs(width * other_height - other_width * height) > max(width, height, other_width, other_height):
            faults.append(
                f"{targets.names[index]} is {width}x{height} and {given.names[index]} {other_width}x{other_height} "
                "(width x height), so that they cannot show the same"
            )
    return faults
