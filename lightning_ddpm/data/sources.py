"""Image sources: each downloads one dataset and opens its training and held-out images."""

import math
import os
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from sklearn.datasets import load_digits
from torchvision.datasets.utils import download_and_extract_archive

from lightning_ddpm.data.datasets import FileDataset, ImageDataset, MemoryDataset, build_path_dataset, describe_file
from lightning_ddpm.data.lmdb_files import open_lmdb, read_lmdb
from lightning_ddpm.data.preparation import prepare_aside
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.utils.condition import NOTHING, ConditionFormat
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, get_sides

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class ImageSource(ABC):
    """A dataset that can be named in a config. Subclass it to train on images of your own.

    Grayscale textures in an array (n, 64, 64), of which every tenth is held out::

        class Textures(ImageSource):
            channels, size = 1, 64

            def prepare(self, root: Path) -> None:
                if not (root / "textures.npy").is_file():
                    raise UserError(f"there is no textures.npy in {root}; set --data.root to its folder")

            def open(self, root: Path, split: Split) -> ImageDataset:
                images = torch.from_numpy(np.load(root / "textures.npy"))[:, None]
                chosen = (torch.arange(len(images)) % 10 == 9) == (split == "test")
                return MemoryDataset(images[chosen], torch.full((int(chosen.sum()),), -1))

            def image_files(self, root: Path) -> list[FileDataset]:
                return []  # the images are in an array

            def class_names(self, root: Path) -> list[str]:
                return []  # the images have no labels

    In the config, ``data.source`` gives the class by its import path, ``class_path: my_module.Textures``; parameters of
    its ``__init__`` go below ``init_args`` and are options of the command line, such as ``--data.source.size``.

    Images reach the model as :class:`ImageDataModule` converts them: floats in [-1, 1], flipped if the config sets it.
    For image files :class:`ImageFolder` needs no code, and :func:`build_path_dataset` opens any list of paths.

    Attributes:
        channels: 1 for grayscale, 3 for RGB, or any other number.
        size: height and width of the images; one number for squares.
        values: type and range of their values.
        condition, condition_values: what else they are conditioned on, and the values of images among it.
    """

    channels: int
    size: ImageSize
    values: ValueRange = UINT8
    condition: ConditionFormat = NOTHING
    condition_values: ValueRange = UINT8

    def inspect(self, root: Path) -> None:  # noqa: B027
        """Set the attributes above if they depend on the data in ``root``; it runs first, in all processes."""

    @abstractmethod
    def prepare(self, root: Path) -> None:
        """Download the data to ``root`` unless they are there, and check them.

        It runs in one process of each machine, before :meth:`open` runs in all of them. Several machines may share
        ``root``: :func:`~lightning_ddpm.data.preparation.prepare_aside` has one of them download, and the others wait.

        Raises:
            UserError: the data are missing or damaged; the message states the fix.
        """

    @abstractmethod
    def open(self, root: Path, split: Split) -> ImageDataset:
        """Open the training images, or with ``split="test"`` those held out for validation and test.

        All ranks must get the same images in the same order. Metrics compare generated images with the training images.
        """

    @abstractmethod
    def image_files(self, root: Path) -> list[FileDataset]:
        """Return the datasets of all image files, for ``check-data``; empty if the images are kept as arrays."""

    @abstractmethod
    def class_names(self, root: Path) -> list[str]:
        """Return the names of the labels 0, 1, ...; empty if the images have no labels."""


class Digits(ImageSource):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, which are part of its installation.

    Every tenth digit is held out.
    """

    channels, size = 1, 8

    def prepare(self, root: Path) -> None:
        pass

    def open(self, root: Path, split: Split) -> ImageDataset:
        digits = load_digits()
        images = (torch.tensor(digits.images)[:, None] * 255 / 16).round().to(torch.uint8)
        chosen = (torch.arange(len(images)) % 10 == 9) == (split == "test")
        return MemoryDataset(images[chosen], torch.tensor(digits.target)[chosen])

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return [str(digit) for digit in range(10)]


class _TorchvisionArrays(ImageSource):
    """A dataset of torchvision that holds all images in one array.

    Attributes:
        dataset: torchvision's class.
        archives: patterns of the archives that it downloads.
    """

    dataset: Any
    archives: tuple[str, ...]

    def prepare(self, root: Path) -> None:
        download = partial(self.dataset, download=True)
        prepare_aside(root, type(self).__name__, lambda: self._is_there(root), download, self.archives)

    def _is_there(self, root: Path) -> bool:
        try:
            for train in (True, False):
                self._load(root, train)
        except RuntimeError:  # as torchvision raises for a file that is missing
            return False
        return True

    def _load(self, root: Path, train: bool) -> Any:
        """Return torchvision's dataset; UserError for a damaged file."""
        try:
            return self.dataset(root, train=train)
        except Exception as error:  # of any kind where a file is cut off
            folder = Path(root) / self.dataset.__name__ / "raw"
            if damaged := next((file for file in sorted(folder.glob("*-ubyte")) if not _is_whole_idx(file)), None):
                raise UserError(f"{damaged} is damaged; delete it, so that it is downloaded again") from error
            raise

    def open(self, root: Path, split: Split) -> ImageDataset:
        data = self._load(root, split == "train")
        images = torch.as_tensor(data.data).reshape(-1, *get_sides(self.size), self.channels)
        return MemoryDataset(images.permute(0, 3, 1, 2), torch.as_tensor(data.targets))

    def image_files(self, root: Path) -> list[FileDataset]:
        return []


class MNIST(_TorchvisionArrays):
    """MNIST: 60,000 handwritten digits of 28x28 pixels, and 10,000 held out."""

    channels, size = 1, 28
    dataset = torchvision.datasets.MNIST
    archives = ("MNIST/raw/*.gz",)

    def class_names(self, root: Path) -> list[str]:
        return list(self.dataset.classes)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 60,000 images of clothing of 28x28 pixels, and 10,000 held out."""

    dataset = torchvision.datasets.FashionMNIST
    archives = ("FashionMNIST/raw/*.gz",)


class CIFAR10(_TorchvisionArrays):
    """CIFAR-10: 50,000 RGB images of 32x32 pixels in ten classes, and 10,000 held out."""

    channels, size = 3, 32
    dataset = torchvision.datasets.CIFAR10
    archives = ("cifar-10-python.tar.gz",)

    def class_names(self, root: Path) -> list[str]:
        return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CelebA(ImageSource):
    """CelebA: 162,770 RGB images of faces, and 19,867 held out, without labels.

    The 178x178 pixels in the center of each image are resized.

    Args:
        size: height and width of the images, at most 178.
    """

    channels = 3

    def __init__(self, size: int = 64) -> None:
        if not 1 <= size <= 178:
            raise UserError(f"CelebA's images are 178 pixels wide: size must lie in [1, 178], got {size}")
        self.size = size

    def prepare(self, root: Path) -> None:
        download = partial(torchvision.datasets.CelebA, download=True)
        prepare_aside(root, "CelebA", lambda: self._is_there(root), download, ("celeba/*.zip", "celeba/*.txt"))

    def _is_there(self, root: Path) -> bool:
        """Return whether every image is there: torchvision looks for their folder only."""
        try:
            listed = torchvision.datasets.CelebA(root, split="all").filename
        except RuntimeError:
            return False
        return set(listed) <= set(os.listdir(Path(root) / torchvision.datasets.CelebA.base_folder / "img_align_celeba"))

    def open(self, root: Path, split: Split) -> FileDataset:
        data = torchvision.datasets.CelebA(root, split="train" if split == "train" else "valid")
        paths = [Path(root) / data.base_folder / "img_align_celeba" / name for name in data.filename]
        return build_path_dataset(paths, torch.full((len(paths),), -1), self.channels, self.size)

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, split) for split in SPLITS]

    def class_names(self, root: Path) -> list[str]:
        return []


class LSUN(ImageSource):
    """One category of LSUN, resized and center-cropped, without labels. The package lmdb must be installed.

    LSUN itself holds out 300 images of each scene category (``church_outdoor``, ``bedroom``, ...). Of an object
    category (``cat``, ...) every 1000th image is held out here.

    Args:
        category: LSUN's name of the category.
        size: height and width of the images.
    """

    channels = 3
    scenes = (
        *("bedroom", "bridge", "church_outdoor", "classroom", "conference_room"),
        *("dining_room", "kitchen", "living_room", "restaurant", "tower"),
    )

    objects = (
        *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining_table", "dog"),
        *("horse", "motorbike", "person", "potted_plant", "sheep", "sofa", "train", "tv-monitor"),
    )

    def __init__(self, category: str, size: ImageSize = 256) -> None:
        if category not in (*self.scenes, *self.objects):
            raise UserError(f"LSUN has no category {category!r}; it has {', '.join((*self.scenes, *self.objects))}")
        self.category, self.size = category, size

    def prepare(self, root: Path) -> None:
        for folder in dict.fromkeys(map(self._folder, SPLITS)):
            is_there = partial(self._is_there, Path(root) / folder)
            prepare_aside(root, f"LSUN {folder}", is_there, partial(self._download, folder), (f"{folder}.zip",))

    def _is_there(self, folder: Path) -> bool:
        """Return whether the database is there; UserError if it is not whole."""
        return folder.is_dir() and bool(open_lmdb(folder.resolve()))

    def _download(self, folder: str, place: Path) -> None:
        kind = "scenes" if self.category in self.scenes else "objects"
        url = f"http://dl.yf.io/lsun/{kind}/{folder}.zip"
        download_and_extract_archive(url, str(place), remove_finished=True)

    def _folder(self, split: Split) -> str:
        name = "train" if split == "train" else "val"
        return f"{self.category}_{name}_lmdb" if self.category in self.scenes else self.category

    def open(self, root: Path, split: Split) -> FileDataset:
        scene, folder = self.category in self.scenes, Path(root) / self._folder(split)
        n = len(open_lmdb(folder.resolve())[1])
        chosen = [i for i in range(n) if scene or (i % 1000 == 999) == (split == "test")]
        file = partial(read_lmdb, folder.resolve(), chosen)
        labels, state = torch.full((len(chosen),), -1), describe_file(folder / "data.mdb")
        return FileDataset([f"{folder}[{i}]" for i in chosen], file, labels, self.channels, self.size, state)

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, split) for split in SPLITS]

    def class_names(self, root: Path) -> list[str]:
        return []


def _is_whole_idx(file: Path) -> bool:
    """Return whether a file of MNIST's format has the size that its header declares."""
    with file.open("rb") as opened:
        header = opened.read(4)
        sizes = opened.read(4 * header[3]) if len(header) == 4 else b""
        shape = [int.from_bytes(sizes[start : start + 4]) for start in range(0, len(sizes), 4)]
    return len(header) == 4 and file.stat().st_size == 4 + 4 * header[3] + math.prod(shape)
