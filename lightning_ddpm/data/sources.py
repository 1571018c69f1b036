"""Where images come from: each source knows how to fetch one data set and how to open its parts."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import download_and_extract_archive

from lightning_ddpm.console import progress
from lightning_ddpm.data.datasets import FileDataset, ImageDataset, MemoryDataset
from lightning_ddpm.errors import UserError
from lightning_ddpm.images import too_small

Split = Literal["train", "test"]


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

    def class_names(self, root: Path) -> list[str]:
        return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CelebA(ImageSource):
    """162,770 RGB faces, and 19,867 held out; the middle 178x178 pixels of each, resized. No labels.

    Args:
        size: height and width, at most 178.
    """

    channels = 3

    def __init__(self, size: int = 64) -> None:
        self.size = size

    def prepare(self, root: Path) -> None:
        _fetch(partial(torchvision.datasets.CelebA, root, download=True), "CelebA", root)

    def open(self, root: Path, split: Split) -> ImageDataset:
        data = torchvision.datasets.CelebA(root, split="train" if split == "train" else "valid")
        names = [str(Path(root) / data.base_folder / "img_align_celeba" / name) for name in data.filename]
        return _files(names, torch.full((len(names),), -1), self, "CelebA")

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

    def open(self, root: Path, split: Split) -> ImageDataset:
        scene = self.category in self.scenes
        folder = Path(root) / (
            f"{self.category}_{'train' if split == 'train' else 'val'}_lmdb" if scene else self.category
        )
        environment, keys = _database(folder.resolve())
        chosen = [i for i in range(len(keys)) if scene or (i % 1000 == 999) == (split == "test")]

        def read(index: int) -> Image.Image:
            with environment.begin() as transaction:
                return Image.open(io.BytesIO(transaction.get(keys[chosen[index]])))

        labels = torch.full((len(chosen),), -1)
        state = _state(folder / "data.mdb")
        return FileDataset([f"{folder}[{i}]" for i in chosen], read, labels, self.channels, self.size, state)

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


class ImageFolder(ImageSource):
    """Any folder of pictures, whatever its depth; labels are the first-level sub-folders, where there are any.

    A root that holds ``train`` and ``test`` (or ``val``) is read as those two parts; else a share of the pictures,
    evenly spread over the sorted names, is held out for the validation loss. Hidden files and folders are skipped.

    Args:
        channels: 1 makes every picture grey, 3 RGB.
        size: height and width; pictures are resized by their short side and cut to the middle, never enlarged.
        holdout: the share held out, where the folder does not say.
    """

    def __init__(self, channels: int = 3, size: int = 64, holdout: float = 0.02) -> None:
        if channels not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
        if not 0 < holdout < 1:
            raise UserError(f"holdout must lie in (0, 1), got {holdout}")
        self.channels, self.size, self.holdout = channels, size, holdout

    def prepare(self, root: Path) -> None:
        """Read every picture's header; all that cannot be used are named at once."""
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; point data.root at your images")
        paths = [
            path
            for folder in {self._folder(root, "train"), self._folder(root, "test")}
            for path in pictures_under(folder)
        ]
        if not paths:
            raise UserError(f"{root} holds no images; looked for {', '.join(IMG_EXTENSIONS)} in it and below")
        checked = ((1, self._fault(path)) for path in paths)
        faults = [fault for fault in progress(checked, len(paths), f"checking {root}", len(paths) > 5000) if fault]
        if faults:
            more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
            listed = "\n".join(faults[:10])
            raise UserError(f"{len(faults)} of the {len(paths)} images in {root} cannot be used:\n{listed}{more}")

    def _fault(self, path: Path) -> str | None:
        try:
            with Image.open(path) as image:
                return f"{path}: {too_small(image.size, self.size)}" if min(image.size) < self.size else None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{path}: {error}"

    @staticmethod
    def _folder(root: Path, split: Split) -> Path:
        for test in ("test", "val"):
            if (root / "train").is_dir() and (root / test).is_dir():
                return root / ("train" if split == "train" else test)
        return root

    def open(self, root: Path, split: Split) -> ImageDataset:
        folder = self._folder(Path(root), split)
        paths = pictures_under(folder)
        if folder == Path(root):
            stride = max(2, min(round(1 / self.holdout), len(paths)))
            paths = [path for i, path in enumerate(paths) if (i % stride == stride - 1) == (split == "test")]
        if not paths:
            raise UserError(f"{folder} holds no image for the part {split!r}; it takes at least one of each part")
        classes = {name: label for label, name in enumerate(self.class_names(root))}
        labels = [classes.get(path.relative_to(folder).parts[0], -1) for path in paths]
        return _files([str(path) for path in paths], torch.tensor(labels), self, str(folder))

    def class_names(self, root: Path) -> list[str]:
        folder = self._folder(Path(root), "train")
        return sorted({path.relative_to(folder).parts[0] for path in pictures_under(folder) if path.parent != folder})


def pictures_under(folder: Path) -> list[Path]:
    """Every picture's path, whatever its depth, sorted; hidden files and folders are skipped."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _files(names: list[str], labels: torch.Tensor, source: ImageSource, what: str) -> ImageDataset:
    state = " ".join(_state(Path(name)) for name in names)
    data = FileDataset(names, lambda index: Image.open(names[index]), labels, source.channels, source.size, state)
    return data.kept(what)


def _state(path: Path) -> str:
    """What changes when a file does."""
    stat = path.stat()
    return f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"


def _fetch(download: Callable[[], object], name: str, root: Path) -> None:
    """Run torchvision's download; what it cannot fetch or find is an error that says where to put it."""
    try:
        download()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not under {Path(root).absolute()} and could not be downloaded ({error}); "
            "put it there in torchvision's layout, or name the folder that has it with --data.root"
        ) from error
