"""Where images come from: each source knows how to fetch one data set and how to open its parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from sklearn.datasets import load_digits
from torchvision.datasets.utils import download_and_extract_archive

from lightning_ddpm.data.datasets import (
    FileDataset,
    ImageDataset,
    MemoryDataset,
    build_path_dataset,
    describe_file_state,
)
from lightning_ddpm.utils.errors import UserError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class ImageSource(ABC):
    """One data set.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        size: height and width of its images.
    """

    channels: int
    size: int

    @abstractmethod
    def prepare(self, root: Path) -> None:
        """Bring the data under ``root`` and check it; called on one rank only, before :meth:`open` on all."""

    @abstractmethod
    def open(self, root: Path, split: Split) -> ImageDataset:
        """The images to train on, or those held out."""

    @abstractmethod
    def image_files(self, root: Path) -> list[FileDataset]:
        """The picture files behind the set, for ``check-data``; none where it is kept as arrays."""

    @abstractmethod
    def class_names(self, root: Path) -> list[str]:
        """What the labels 0, 1, ... mean; empty where there are none."""


class Digits(ImageSource):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: real, and part of the installation.

    Every tenth is held out for the validation loss.
    """

    channels, size = 1, 8

    def prepare(self, root: Path) -> None:
        pass

    def open(self, root: Path, split: Split) -> ImageDataset:
        digits = load_digits()
        images = (torch.tensor(digits.images)[:, None] * 255 / 16).round().to(torch.uint8)
        held_out = torch.arange(len(images)) % 10 == 9
        chosen = held_out if split == "test" else ~held_out
        return MemoryDataset(images[chosen], torch.tensor(digits.target)[chosen])

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return [str(digit) for digit in range(10)]


class MNIST(ImageSource):
    """60,000 handwritten digits of 28x28 pixels, and 10,000 held out."""

    channels, size = 1, 28
    dataset: Any = torchvision.datasets.MNIST

    def prepare(self, root: Path) -> None:
        for train in (True, False):
            _fetch(partial(self.dataset, root, train=train, download=True), type(self).__name__, root)

    def open(self, root: Path, split: Split) -> ImageDataset:
        data = self.dataset(root, train=split == "train")
        return MemoryDataset(data.data[:, None], data.targets)

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return list(self.dataset.classes)


class FashionMNIST(MNIST):
    """60,000 pieces of clothing of 28x28 pixels, and 10,000 held out."""

    dataset = torchvision.datasets.FashionMNIST


class CIFAR10(ImageSource):
    """50,000 RGB images of 32x32 pixels in ten classes, and 10,000 held out."""

    channels, size = 3, 32

    def prepare(self, root: Path) -> None:
        for train in (True, False):
            _fetch(partial(torchvision.datasets.CIFAR10, root, train=train, download=True), "CIFAR10", root)

    def open(self, root: Path, split: Split) -> ImageDataset:
        data = torchvision.datasets.CIFAR10(root, train=split == "train")
        return MemoryDataset(torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets))

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CelebA(ImageSource):
    """162,770 RGB faces, and 19,867 held out; the middle 178x178 pixels of each, resized. No labels.

    Args:
        size: height and width, at most 178.
    """

    channels = 3

    def __init__(self, size: int = 64) -> None:
        if not 1 <= size <= 178:
            raise UserError(f"CelebA's faces are 178 pixels wide: size must lie in [1, 178], got {size}")
        self.size = size

    def prepare(self, root: Path) -> None:
        _fetch(partial(torchvision.datasets.CelebA, root, download=True), "CelebA", root)

    def open(self, root: Path, split: Split) -> FileDataset:
        data = torchvision.datasets.CelebA(root, split="train" if split == "train" else "valid")
        paths = [Path(root) / data.base_folder / "img_align_celeba" / name for name in data.filename]
        return build_path_dataset(paths, torch.full((len(paths),), -1), self.channels, self.size)

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, split) for split in SPLITS]

    def class_names(self, root: Path) -> list[str]:
        return []


class LSUN(ImageSource):
    """One category of LSUN (``church_outdoor``, ``bedroom``, ``cat``, ...), resized and cut to the middle. No labels.

    Needs the package lmdb. Categories of scenes come with 300 held-out images; of objects (``cat``) every 1000th image
    is held out here.

    Args:
        category: as LSUN names it.
        size: height and width.
    """

    channels = 3
    scenes = (
        *("bedroom", "bridge", "church_outdoor", "classroom", "conference_room"),
        *("dining_room", "kitchen", "living_room", "restaurant", "tower"),
    )

    def __init__(self, category: str, size: int = 256) -> None:
        self.category, self.size = category, size

    def prepare(self, root: Path) -> None:
        base = "http://dl.yf.io/lsun"
        if self.category in self.scenes:
            for split in ("train", "val"):
                self._fetch(root, f"{self.category}_{split}_lmdb", f"{base}/scenes/{self.category}_{split}_lmdb.zip")
        else:
            self._fetch(root, self.category, f"{base}/objects/{self.category}.zip")

    def _fetch(self, root: Path, folder: str, url: str) -> None:
        if not (Path(root) / folder).is_dir():
            download = partial(download_and_extract_archive, url, str(root), remove_finished=True)
            _fetch(download, f"LSUN {folder}", root)

    def open(self, root: Path, split: Split) -> FileDataset:
        scene = self.category in self.scenes
        folder = Path(root) / (
            f"{self.category}_{'train' if split == 'train' else 'val'}_lmdb" if scene else self.category
        )
        environment, keys = _database(folder.resolve())
        chosen = [i for i in range(len(keys)) if scene or (i % 1000 == 999) == (split == "test")]

        def file(index: int) -> BytesIO:
            with environment.begin() as transaction:
                return BytesIO(transaction.get(keys[chosen[index]]))

        labels = torch.full((len(chosen),), -1)
        state = describe_file_state(folder / "data.mdb")
        return FileDataset([f"{folder}[{i}]" for i in chosen], file, labels, self.channels, self.size, state)

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, split) for split in SPLITS]

    def class_names(self, root: Path) -> list[str]:
        return []


@cache
def _database(folder: Path) -> tuple[Any, list[bytes]]:
    """An LMDB and its keys; opened once, as LMDB wants it.

    torchvision's LSUN unpickles a list of keys from the current folder, whoever put it there, and writes it there.
    """
    try:
        import lmdb
    except ImportError as error:
        raise UserError("LSUN is stored in LMDB files: pip install lmdb") from error
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False, max_readers=1)
    except lmdb.Error as error:
        raise UserError(f"{folder} is no LMDB of LSUN: {error}") from error
    with environment.begin() as transaction:
        return environment, list(transaction.cursor().iternext(values=False))


def _fetch(download: Callable[[], object], name: str, root: Path) -> None:
    """Run torchvision's download; what it cannot fetch or find is an error that says where to put it."""
    try:
        download()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not under {Path(root).absolute()} and could not be downloaded ({error}); "
            "put it there in torchvision's layout, or name the folder that has it with --data.root"
        ) from error
