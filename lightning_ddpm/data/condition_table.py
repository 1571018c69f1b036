"""Tables of conditions: a CSV file with a row for each image, and images of any source with a row each."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.datasets import FileDataset, ImageDataset
from lightning_ddpm.data.sources import SPLITS, ImageSource, Split
from lightning_ddpm.data.validation import format_faults
from lightning_ddpm.utils.condition import ConditionFormat
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import read_utf8


class ConditionTable:
    """A CSV file whose first line has the names of its columns, of which several may have none.

    Attributes:
        columns: the text of each column, by its name.

    Args:
        path: the file.

    Raises:
        UserError: there is no such file, or it is no table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(
                f"there is no file {path}; give a CSV file with a line of column names and a row for each image"
            )
        try:
            rows = list(csv.reader(io.StringIO(read_utf8(path).removeprefix("\ufeff"), newline="")))
        except csv.Error as error:
            raise UserError(f"{path} is not a CSV file: {first_line(error)}") from error
        rows = [[each.strip() for each in row] for row in rows if row]
        if len(rows) < 2:
            raise UserError(f"{path} has no rows below a line of column names")
        header, *body = rows
        if twice := next((name for name in header if name and header.count(name) > 1), None):
            raise UserError(f"{path} has two columns named {twice!r}; rename one")
        for number, row in enumerate(body, 1):
            if len(row) != len(header):
                raise UserError(f"row {number} of {path} has {len(row)} values and there are {len(header)} columns")
        self.columns = dict(zip(header, map(list, zip(*body, strict=True)), strict=True))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def read_column(self, name: str) -> list[str]:
        """Return the text of a column; UserError if there is none of this name."""
        if name not in self.columns:
            raise UserError(f"{self.path} has no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def read_numbers(self, names: Sequence[str]) -> Tensor:
        """Return the numbers in these columns, (n, k) float32; UserError for anything else, and for NaN."""
        read = [
            [self._parse(name, number, text) for number, text in enumerate(self.read_column(name), 1)] for name in names
        ]
        return torch.tensor(read, dtype=torch.float64).T.float()

    def read_flags(self, names: Sequence[str]) -> Tensor:
        """Return the 0s and 1s in these columns, (n, k) uint8."""
        numbers = self.read_numbers(names)
        wrong = ((numbers != 0) & (numbers != 1)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise UserError(
                f"row {row + 1} of {self.path} has {float(numbers[row, column]):g} in the column {names[column]!r}; "
                "give 1 for each class that an image has, else 0"
            )
        return numbers.to(torch.uint8)

    def _parse(self, name: str, number: int, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"row {number} of {self.path} has {text!r} in the column {name!r}; give a finite number, or "
                "leave the image out"
            )
        return value


class Described(ImageSource):
    """Images of another source with what a table states about each: numbers, and classes of which it may have several.

    Args:
        source: the images, in files, or in one array.
        vector: columns of numbers.
        multilabel: columns of classes: 1 for each that an image has, else 0.
        file: the CSV file in ``data.root``.
        name: the column with the path of each image from ``data.root``. Images in one array have their index from 0
            there; without the column, there is a row for each of them in their order.
    """

    def __init__(
        self,
        source: ImageSource,
        vector: Sequence[str] = (),
        multilabel: Sequence[str] = (),
        file: str = "conditions.csv",
        name: str = "file",
    ) -> None:
        if not (vector or multilabel):
            raise UserError("name the columns of the table in data.source.vector or data.source.multilabel")
        self.source, self.file, self.name = source, file, name
        self.condition = ConditionFormat(tuple(vector), tuple(multilabel))

    def inspect(self, root: Path) -> None:
        source = self.source
        source.inspect(root)
        self.channels, self.size, self.values = source.channels, source.size, source.values
        if source.condition.kinds:
            raise UserError(
                f"the images are conditioned on {source.condition.describe()} already; give their source alone"
            )

    def prepare(self, root: Path) -> None:
        """Prepare the images, and check that each has a row of its own.

        Raises:
            UserError: it has not, or a row has no numbers.
        """
        self.source.prepare(root)
        parts, table = [self.source.open(root, split) for split in SPLITS], ConditionTable(Path(root) / self.file)
        for images in parts:
            self._describe(images, table, Path(root))
        train, held_out = (self._list_names(images, Path(root)) for images in parts)
        if both := set(train).intersection(held_out):
            raise UserError(
                f"a training image and a held-out one are both named {min(both)}, so that no row of {table.path} is of "
                "one alone; keep all images in one file, of which data.source.holdout is a fraction"
            )
        if self._is_in_order(train, table) and len(table) != len(train) + len(held_out):
            raise UserError(
                f"{table.path} has {len(table)} rows and there are {len(train) + len(held_out)} images; give a row for "
                f"each, or their indices in a column {self.name!r}"
            )

    def open(self, root: Path, split: Split) -> ImageDataset:
        return self._describe(self.source.open(root, split), ConditionTable(Path(root) / self.file), Path(root))

    def _describe(self, images: ImageDataset, table: ConditionTable, root: Path) -> ConditionedDataset:
        """Return images with their rows as conditions."""
        rows = self._find_rows(images, table, root)
        vector, multilabel = self.condition.vector, self.condition.multilabel
        return ConditionedDataset(
            images,
            table.read_numbers(vector)[rows] if vector else None,
            table.read_flags(multilabel)[rows] if multilabel else None,
        )

    def _find_rows(self, images: ImageDataset, table: ConditionTable, root: Path) -> list[int]:
        """Return the row of each image."""
        kind = type(self.source).__name__
        if len(images.names) != len(images):
            raise UserError(f"the images of {kind} have no names, by which {table.path} could describe them")
        names = self._list_names(images, root)
        if self._is_in_order(names, table):
            keys = [str(row) for row in range(len(table))]
        else:
            keys = table.read_column(self.name)
        places = {key: row for row, key in enumerate(keys)}
        if len(places) < len(keys):
            twice = next(key for row, key in enumerate(keys) if places[key] != row)
            raise UserError(f"{table.path} has two rows for {twice!r}; delete one")
        if missing := [name for name in names if name not in places]:
            raise UserError(
                f"{table.path} has no row for {len(missing)} of the {len(names)} images:\n{format_faults(missing)}\n"
                "Add the rows, or leave the images out."
            )
        return [places[name] for name in names]

    def _list_names(self, images: ImageDataset, root: Path) -> list[str]:
        """Return the names of images in the table: paths from the folder, or numbers."""
        paths = ((name, Path(name)) for name in images.names)
        return [path.relative_to(root).as_posix() if path.is_relative_to(root) else name for name, path in paths]

    def _is_in_order(self, names: Sequence[str], table: ConditionTable) -> bool:
        """Return whether the rows are of the images 0, 1, ... in one array, whose names these are."""
        return self.name not in table.columns and all(name.isdecimal() for name in names)

    def image_files(self, root: Path) -> list[FileDataset]:
        return self.source.image_files(root)

    def class_names(self, root: Path) -> list[str]:
        return self.source.class_names(root)
