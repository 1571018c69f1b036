"""Datasets of Hugging Face: from the Hub, or of Parquet and image files in a folder."""

import os
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_ddpm.data.datasets import FileDataset, describe_file
from lightning_ddpm.data.file_table import Names
from lightning_ddpm.data.image_io import check_channels
from lightning_ddpm.data.parquet_rows import ParquetTable, StreamedImages
from lightning_ddpm.data.sources import SPLITS, ImageSource, Split
from lightning_ddpm.data.splits import check_holdout, describe_empty, split_indices
from lightning_ddpm.data.validation import find_faults, format_faults
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import import_extra
from lightning_ddpm.utils.image_size import ImageSize

FOLDER = "huggingface"
"""Folder in ``data.root`` for what is downloaded and converted."""


class HuggingFace(ImageSource):
    """A dataset of the Hub, or of a local folder, read by the package datasets. Images are decoded as in
    :class:`~lightning_ddpm.data.image_folder.ImageFolder`.

    It is downloaded once, to ``data.root``, and its Arrow files are mapped into memory, shared by all processes of a
    machine. With ``streaming`` nothing is downloaded: the row groups of its Parquet files are read as training needs
    them, and shuffled in a window. Each image is seen once an epoch, and a run resumes at its next image, either way. A
    set of tar files that does not fit on the disk is read by :class:`~lightning_ddpm.data.shards.Shards`.

    A row group is read by one process of all ranks in an epoch, which keeps ``shuffle_groups`` of them in memory. The
    order depends on the number of these processes and on ``batch_size``; a resumed run keeps that of its epoch.
    Before training the first image of each split is read, and not all of them.

    Args:
        name: name on the Hub, such as ``ylecun/mnist``, or a folder of its files, such as Parquet.
        config: configuration of a dataset that has several.
        revision: version on the Hub, best a commit, so that the data stay the same.
        image: name of the column of images.
        label: name of the column of classes; ``null`` for none.
        train: name of the split to train on.
        held_out: name of the split held out; ``null`` to hold out a fraction of the first one.
        holdout: that fraction, evenly spaced, to one image and at least one; when streaming, to one row group.
        channels, size: as in ``ImageFolder``.
        streaming: read Parquet files where they are: on a disk or on the Hub.
        shuffle_groups: number of row groups whose images are shuffled together when streaming.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        image: str = "image",
        label: str | None = None,
        train: str = "train",
        held_out: str | None = None,
        holdout: float = 0.02,
        channels: int = 3,
        size: ImageSize = 64,
        streaming: bool = False,
        shuffle_groups: int = 16,
    ) -> None:
        check_holdout(holdout)
        if held_out == train:
            raise UserError(
                f"{train} is both data.source.train and held_out; name another split, or leave held_out out"
            )
        check_channels(channels)
        if shuffle_groups < 1:
            raise UserError(f"data.source.shuffle_groups must be at least 1, got {shuffle_groups}")
        self.name, self.config, self.revision = name, config, revision
        self.image, self.label, self.train, self.held_out, self.holdout = image, label, train, held_out, holdout
        self.channels, self.size = channels, size
        self.streaming, self.shuffle_groups = streaming, shuffle_groups
        self._loaded: dict[tuple[Path, str], Any] = {}

    def prepare(self, root: Path) -> None:
        """Download the dataset unless it is there, and read every image once, until a file changes.

        Nothing of a streamed dataset is downloaded, and the first image of each split is read.

        Raises:
            UserError: it cannot be loaded, lacks a split or a column, or has images that cannot be used.
        """
        for split in SPLITS:
            data = self.open(root, split)
            if self.streaming:
                data.__getitems__([0])
                continue
            if bad := find_faults(data, self.name):
                raise UserError(
                    f"{len(bad)} of the {len(data)} images in {self.name} cannot be used:\n"
                    f"{format_faults(list(bad.values()))}\nTrain on a copy without these rows."
                )

    def open(self, root: Path, split: Split) -> FileDataset:
        name = self.train if split == "train" or not self.held_out else self.held_out
        rows = self._load(Path(root), name)
        labels = self._read_labels(root, rows, name)
        if isinstance(rows, ParquetTable):
            return self._stream(rows, labels, split)
        chosen = np.arange(len(rows)) if self.held_out else split_indices(len(rows), self.holdout)[split]
        if not len(chosen):
            raise UserError(describe_empty(self.name, split))
        columns = rows.select_columns([self.image])
        state = " ".join(describe_file(Path(each["filename"])) for each in rows.cache_files)
        names = RowNames(f"{self.name}[{rows.split}]", chosen)
        file = partial(_read_row, columns, self.image, chosen, self._list_folders(Path(root)))
        return FileDataset(names, file, labels[chosen], self.channels, self.size, state)

    def _stream(self, rows: ParquetTable, labels: torch.Tensor, split: Split) -> FileDataset:
        """Open the images of a table without reading them."""
        groups = np.arange(len(rows.ends)) if self.held_out else split_indices(len(rows.ends), self.holdout)[split]
        if not len(groups):
            raise UserError(
                f"{self.name} has a single row group in the split {self.train}, and streaming holds out whole ones; "
                "name a split in data.source.held_out"
            )
        parts, chosen = rows.choose(groups)
        images = StreamedImages(parts, self.image, self.shuffle_groups)
        data = FileDataset(parts, images, labels[chosen], self.channels, self.size, rows.state)
        data.blocks = images.get_blocks(rows.digest)
        return data

    def _list_folders(self, root: Path) -> list[Path]:
        """Return the folders that a row's image may be a file in: the dataset's own, and what was unpacked from it."""
        own = Path(os.path.expanduser(self.name))
        if not own.is_dir():
            hub = import_extra("huggingface_hub", "datasets of Hugging Face", "huggingface")
            own = Path(hub.constants.HF_HUB_CACHE)
        return [own.resolve(), (root / FOLDER).resolve()]

    def image_files(self, root: Path) -> list[FileDataset]:
        return [self.open(root, split) for split in SPLITS]

    def class_names(self, root: Path) -> list[str]:
        return [] if self.label is None else self._list_classes(self._load(Path(root), self.train))

    def _list_classes(self, rows: Any) -> list[str]:
        """Return the names that a column of classes declares, or else its values, sorted."""
        assert self.label is not None
        if names := getattr(rows.features[self.label], "names", None):
            return list(names)
        values = {*rows.read_column(self.label)} if isinstance(rows, ParquetTable) else rows.unique(self.label)
        return [str(each) for each in sorted(each for each in values if each is not None)]

    def _read_labels(self, root: Path, rows: Any, split: str) -> torch.Tensor:
        if self.label is None:
            return torch.full((len(rows),), -1)
        if isinstance(rows, ParquetTable):
            column = rows.read_column(self.label)
        else:
            column = rows.with_format(None)[self.label][:]
        if getattr(rows.features[self.label], "names", None):
            return torch.tensor([-1 if each is None else each for each in column])
        numbers = {name: number for number, name in enumerate(self.class_names(root))}
        if unknown := {str(each) for each in column if each is not None} - numbers.keys():
            raise UserError(f"{self.name} has the class {min(unknown)} in {split} alone, and not in {self.train}")
        return torch.tensor([-1 if each is None else numbers[str(each)] for each in column])

    def _load(self, root: Path, split: str) -> Any:
        """Return the rows of a split, with images as the bytes of their files."""
        if (root, split) not in self._loaded:
            self._loaded[root, split] = self._check(self._load_anew(root, split), split)
        return self._loaded[root, split]

    def _load_anew(self, root: Path, split: str) -> Any:
        datasets = import_extra("datasets", "datasets of Hugging Face", "huggingface")
        datasets.disable_progress_bars()
        path = os.path.expanduser(self.name)
        options = {"cache_dir": str(root / FOLDER), "revision": self.revision}
        try:
            if not self.streaming:
                return datasets.load_dataset(path, self.config, split=split, **options)
            files = datasets.load_dataset_builder(path, self.config, **options).config.data_files or {}
            if split not in files:
                raise ValueError(f"it has the splits {', '.join(map(str, files))}")
        except Exception as error:  # of many kinds: no network, no such name, split or configuration
            raise UserError(
                f"{self.name} cannot be loaded from {'the folder' if Path(path).is_dir() else 'Hugging Face'}, split "
                f"{split}: {first_line(error)}; check data.source.name, config, train and held_out, or the network"
            ) from error
        urls: Sequence[str] = files[split]
        if other := next((each for each in urls if not each.endswith(".parquet")), None):
            raise UserError(
                f"{other} is not Parquet, which streaming reads; the Hub keeps a copy of most datasets as Parquet: set "
                "data.source.revision to refs/convert/parquet, or streaming to false"
            )
        return ParquetTable(urls)

    def _check(self, rows: Any, split: str) -> Any:
        """Check that there are images and classes in their columns; return the rows, with images as bytes."""
        datasets = import_extra("datasets", "datasets of Hugging Face", "huggingface")
        for column in filter(None, (self.image, self.label)):
            if column not in rows.features:
                raise UserError(
                    f"{self.name} has no column {column}; it has {', '.join(rows.features)}: set data.source.image and "
                    "data.source.label"
                )
        if not isinstance(rows.features[self.image], datasets.Image):
            raise UserError(f"the column {self.image} of {self.name} holds no images; set data.source.image")
        if self.label and not isinstance(rows.features[self.label], datasets.ClassLabel | datasets.Value):
            raise UserError(
                f"the column {self.label} of {self.name} holds more than a class of each image; set data.source.label"
            )
        if not len(rows):
            raise UserError(f"{self.name} holds no image in the split {split}; each split needs at least one")
        return rows if self.streaming else rows.cast_column(self.image, datasets.Image(decode=False))


class RowNames(Names):
    """The names of rows in messages.

    Args:
        table: name of the table.
        rows: numbers of the rows, (n,) int64.
    """

    def __init__(self, table: str, rows: np.ndarray) -> None:
        self._table, self._rows = table, rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, index: int) -> str:
        return f"row {self._rows[index]} of {self._table}"


def _read_row(rows: Any, column: str, chosen: np.ndarray, folders: list[Path], index: int) -> Path | BytesIO:
    """Return the file in a row, whose bytes stand there, or its path; UserError if that is in none of the folders."""
    image = rows[int(chosen[index])][column]
    if image is None or not (image["bytes"] or image["path"]):
        raise UserError("it has no image")
    if image["bytes"] is not None:
        return BytesIO(image["bytes"])
    path = Path(image["path"])
    if not any(path.resolve().is_relative_to(each) for each in folders):
        raise UserError(f"it names the file {path}, outside {folders[0]}; files of another origin are not read")
    return path
