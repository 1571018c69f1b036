"""Images in many tar files (WebDataset's format), on a disk or in object storage, for sets that fit on no disk."""

import re
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import torch

from lightning_ddpm.data.datasets import FileDataset
from lightning_ddpm.data.file_table import Names
from lightning_ddpm.data.image_io import check_channels
from lightning_ddpm.data.sources import SPLITS, ImageSource, Split
from lightning_ddpm.data.splits import check_holdout, describe_empty, split_indices
from lightning_ddpm.data.tar_index import index_tar, read_range
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.image_size import ImageSize

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "pgm")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Shards(ImageSource):
    """Tar files of images, as WebDataset and img2dataset write them, without compression.

    The place of each image in its tar file is found once and cached, and any image is then read alone: from a disk, or
    by a range request from object storage or the web (fsspec: ``https://``, ``s3://``, ``hf://``, ...). The order of
    training is that of every other dataset: a permutation of all images in each epoch, divided among ranks and
    workers, in which a run resumes at its next image. Images are decoded as in
    :class:`~lightning_ddpm.data.image_folder.ImageFolder`.

    Args:
        train: tar files to train on: names in ``data.root`` or URLs, with ``{000..099}`` for numbers, or ``*``.
        held_out: tar files held out, likewise; ``null`` to hold out a fraction of the images of the others.
        holdout: that fraction, evenly spaced, to one image and at least one.
        image: extension of the images; ``null`` for that of any format that is read.
        label: extension of the files that hold the class of an image as a number, such as ``cls``; ``null`` for none.
        classes: names of the classes; ``null`` for their numbers.
        channels, size: as in ``ImageFolder``.
    """

    def __init__(
        self,
        train: str | list[str] = "*.tar",
        held_out: str | list[str] | None = None,
        holdout: float = 0.02,
        image: str | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
        channels: int = 3,
        size: ImageSize = 64,
    ) -> None:
        check_holdout(holdout)
        check_channels(channels)
        if classes is not None and label is None:
            raise UserError("data.source.classes names the classes in files of data.source.label, which is not given")
        self.train, self.held_out, self.holdout = train, held_out, holdout
        self.image, self.label, self.classes = image, label, classes
        self.channels, self.size = channels, size
        self._indices: dict[tuple[Path, str], ShardIndex] = {}

    def prepare(self, root: Path) -> None:
        """Index the tar files, until one of them changes, and read the first image of each.

        Raises:
            UserError: a tar file or its first image cannot be used.
        """
        for split in self._parts:
            index = self._load(Path(root), split)
            first = np.unique(index.shards, return_index=True)[1]
            data = self._build(index, first)
            for place in range(len(data)):
                data.__getitems__([place])
            report(f"{split}: {len(index.labels):,} images in {len(index.urls)} tar files")

    def open(self, root: Path, split: Split) -> FileDataset:
        index = self._load(Path(root), "held_out" if split == "test" and self.held_out else "train")
        n = len(index.labels)
        chosen = np.arange(n) if self.held_out else split_indices(n, self.holdout)[split]
        if not len(chosen):
            raise UserError(describe_empty(", ".join(index.urls), split))
        return self._build(index, chosen)

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, split) for split in SPLITS]

    def class_names(self, root: Path) -> list[str]:
        if self.label is None or self.classes is not None:
            return list(self.classes or ())
        greatest = max(int(self._load(Path(root), split).labels.max()) for split in self._parts)
        return [str(label) for label in range(greatest + 1)]

    @property
    def _parts(self) -> list[str]:
        """The names of the options that name tar files."""
        return ["train", "held_out"] if self.held_out else ["train"]

    def _build(self, index: "ShardIndex", chosen: np.ndarray) -> FileDataset:
        files = ShardFiles(index.urls, index.shards[chosen], index.places[chosen])
        labels = torch.from_numpy(index.labels[chosen])
        return FileDataset(ShardNames(files), files, labels, self.channels, self.size, index.state)

    def _load(self, root: Path, split: str) -> "ShardIndex":
        """Return the index of the tar files of a split."""
        if (root, split) not in self._indices:
            urls = self._list_urls(root, split)
            if split == "held_out" and (both := set(urls).intersection(self._list_urls(root, "train"))):
                raise UserError(f"{min(both)} is in both data.source.train and held_out; name it in one of them alone")
            extensions = (self.image.lower(),) if self.image else IMAGES
            read = partial(index_tar, image=extensions, label=self.label and self.label.lower())
            tars = [*show_progress(((1, read(url)) for url in urls), len(urls), "reading tar files", len(urls) > 100)]
            labels = np.concatenate([tar.labels for tar in tars])
            if self.classes is not None and self.label and labels.max() >= len(self.classes):
                raise UserError(
                    f"the shards have the class {labels.max()}, and data.source.classes {len(self.classes)} names"
                )
            shards = np.repeat(np.arange(len(tars), dtype=np.int32), [len(tar.labels) for tar in tars])
            places, state = np.concatenate([tar.places for tar in tars]), " ".join(tar.state for tar in tars)
            self._indices[root, split] = ShardIndex(urls, shards, places, labels, state)
        return self._indices[root, split]

    def _list_urls(self, root: Path, split: str) -> list[str]:
        given = self.held_out if split == "held_out" and self.held_out else self.train
        if not given:
            raise UserError(f"data.source.{split} names no tar file; name some, as in '*.tar'")
        return [url for each in ([given] if isinstance(given, str) else given) for url in find_shards(root, each)]


class ShardIndex(NamedTuple):
    """The images of several tar files.

    Attributes:
        urls: the tar files.
        shards: which of them each image is in, (n,) int32.
        places: offset and size of each image, (n, 2) int64.
        labels: (n,) int64, -1 for none.
        state: text that changes when a file does.
    """

    urls: list[str]
    shards: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    state: str


def find_shards(root: Path, pattern: str) -> list[str]:
    """Return the sorted paths or URLs of the tar files that a pattern stands for.

    Raises:
        UserError: it stands for none.
    """
    names = [pattern]
    while any(RANGE.search(name) for name in names):
        names = [expanded for name in names for expanded in _expand(name)]
    if "://" not in pattern:
        found = [_glob_folder(root, name) if "*" in name else [str(root / name)] for name in names]
    elif "*" in pattern:
        try:
            found = [sorted(_glob_url(name)) for name in names]
        except Exception as error:  # of any kind for a network
            raise UserError(f"{pattern} cannot be listed: {first_line(error)}") from error
    else:
        found = [names]
    urls = [url for each in found for url in each]
    if not urls:
        raise UserError(f"there is no tar file {pattern} in {root}; check data.root and data.source.train and held_out")
    return urls


def _glob_folder(root: Path, pattern: str) -> list[str]:
    """Return the sorted paths that a pattern stands for, which begins in a folder unless it is absolute."""
    path = Path(pattern)
    if path.is_absolute():
        root, pattern = Path(path.anchor), str(path.relative_to(path.anchor))
    return sorted(map(str, root.glob(pattern)))


def _glob_url(pattern: str) -> list[str]:
    system, path = fsspec.core.url_to_fs(pattern)
    return [system.unstrip_protocol(each) for each in system.glob(path)]


def _expand(name: str) -> list[str]:
    """Return the names with each number of the first range in a name, as in ``{000..099}``."""
    found = RANGE.search(name)
    if not found:
        return [name]
    first, last = found.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [name[: found.start()] + number + name[found.end() :] for number in numbers]


class ShardFiles:
    """Reads images in tar files; see :data:`~lightning_ddpm.data.datasets.OpenFile`.

    Args:
        urls, shards, places: see :class:`ShardIndex`.
    """

    def __init__(self, urls: Sequence[str], shards: np.ndarray, places: np.ndarray) -> None:
        self.urls, self.shards, self.places = urls, shards, places

    def __call__(self, index: int) -> BytesIO:
        offset, size = self.places[index].tolist()
        return BytesIO(read_range(self.urls[int(self.shards[index])], offset, size))

    def name(self, index: int) -> str:
        """Return where an image lies, for messages."""
        return f"the image at byte {self.places[index, 0]:,} of {self.urls[int(self.shards[index])]}"


class ShardNames(Names):
    """The names of images in tar files, for messages.

    Args:
        files: the images.
    """

    def __init__(self, files: ShardFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files.shards)

    def get(self, index: int) -> str:
        return self._files.name(index)
