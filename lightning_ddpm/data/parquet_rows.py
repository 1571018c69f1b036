"""Rows of Parquet files that are read where they are, a row group at a time: on a disk or at a URL."""

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from threading import Lock
from typing import Any

import fsspec
import numpy as np

from lightning_ddpm.data.file_table import Names
from lightning_ddpm.data.order import Blocks
from lightning_ddpm.data.tar_index import describe_url
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import import_extra
from lightning_ddpm.utils.hashing import make_cache_key

OPTIONS = "data.source.name and revision"


class ParquetTable:
    """The row groups of Parquet files with equal columns, in order. Their footers are read once, until a file changes.

    Args:
        urls: paths or URLs of the files.

    Attributes:
        files, groups: which file each row group is in, and its number there, (k,) int64.
        ends: the end of each row group among all rows, (k,) int64.
        state: text that changes when a file does.
        digest: changes when the rows do, wherever the files are: that of the sizes of all columns in each row group.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self.state = " ".join(f"{url} {describe_url(url, OPTIONS)}" for url in self.urls)
        path = find_cached(f"parquet/{make_cache_key(self.state)}.npz")
        if (content := read_cached(path)) is None:
            buffer = io.BytesIO()
            files = show_progress(((1, _index(url)) for url in urls), len(urls), "reading footers", len(urls) > 100)
            found = [(file, *group) for file, groups in enumerate(files) for group in groups]
            np.savez(buffer, table=np.array(found, np.int64))
            content = buffer.getvalue()
            write_cached(path, content)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            table = arrays["table"].reshape(-1, 4)
        self.files, self.groups, self.ends = table[:, 0], table[:, 1], np.cumsum(table[:, 2])
        self.digest = make_cache_key(np.ascontiguousarray(table[:, 1:]).tobytes())

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def features(self) -> Any:
        """The columns and their types, those of the package datasets."""
        datasets = import_extra("datasets", "datasets of Hugging Face", "huggingface")
        with open_parquet(self.urls[0]) as file:
            return datasets.Features.from_arrow_schema(file.schema_arrow)

    def read_column(self, name: str) -> list[Any]:
        """Return the values of all rows in a column, which is small; it is read once, until a file changes."""
        pa = import_extra("pyarrow", "Parquet files", "huggingface")
        path = find_cached(f"parquet/{make_cache_key(f'{self.state} {name}')}.arrow")
        if (content := read_cached(path)) is None:
            parts = []
            for url in self.urls:
                with open_parquet(url) as file:
                    parts.append(file.read(columns=[name], use_threads=False).replace_schema_metadata(None))
            sink = pa.BufferOutputStream()
            whole = pa.concat_tables(parts)
            with pa.ipc.new_stream(sink, whole.schema) as stream:
                stream.write_table(whole)
            content = sink.getvalue().to_pybytes()
            write_cached(path, content)
        values: list[Any] = pa.ipc.open_stream(content).read_all()[name].to_pylist()
        return values

    def choose(self, chosen: np.ndarray) -> tuple["RowGroupParts", np.ndarray]:
        """Return some of the row groups, in this order, and the rows (n,) int64 that are in them."""
        begins = np.concatenate([[0], self.ends])[:-1]
        rows = [np.arange(begins[each], self.ends[each]) for each in chosen]
        sizes = (self.ends - begins)[chosen]
        return RowGroupParts(self.urls, self.files[chosen], self.groups[chosen], np.cumsum(sizes)), np.concatenate(rows)


class RowGroupParts(Names):
    """The rows of some row groups, and their names in messages.

    Args:
        urls, files, groups, ends: see :class:`ParquetTable`.
    """

    def __init__(self, urls: Sequence[str], files: np.ndarray, groups: np.ndarray, ends: np.ndarray) -> None:
        self.urls, self.files, self.groups, self.ends = urls, files, groups, ends

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return which of the row groups a row is in, and its place there."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, index - (int(self.ends[part - 1]) if part else 0)

    def get(self, index: int) -> str:
        part, place = self.locate(index)
        return f"row {place} of row group {self.groups[part]} of {self.urls[int(self.files[part])]}"


class StreamedImages:
    """Reads images from a column; see :data:`~lightning_ddpm.data.datasets.OpenFile`.

    A process keeps the images of the last row groups that it has read, and reads others whole when one of their rows is
    needed.

    Args:
        rows: the rows.
        column: name of the column.
        kept: number of row groups that a process keeps.
    """

    def __init__(self, rows: RowGroupParts, column: str, kept: int) -> None:
        self.rows, self.column, self.kept = rows, column, kept
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> tuple[RowGroupParts, str, int]:
        return self.rows, self.column, self.kept  # a worker reads row groups of its own

    def __setstate__(self, state: tuple[RowGroupParts, str, int]) -> None:
        self.rows, self.column, self.kept = state
        self._groups, self._lock = OrderedDict(), Lock()

    def __call__(self, index: int) -> BytesIO:
        part, place = self.rows.locate(index)
        with self._lock:  # check-data reads by several threads
            image = self._read_group(part)[place].as_py()
        if image is None:
            raise UserError("it has no image")
        if image["bytes"] is None:
            raise UserError(
                "its image is a file beside the table; streaming reads images that are in the table, so set "
                "data.source.streaming to false"
            )
        return BytesIO(image["bytes"])

    def _read_group(self, part: int) -> Any:
        """Return the images of a row group, an array of pyarrow."""
        if part in self._groups:
            self._groups.move_to_end(part)
            return self._groups[part]
        while len(self._groups) >= self.kept:  # before the next one takes memory
            self._groups.popitem(last=False)
        with open_parquet(self.rows.urls[int(self.rows.files[part])]) as file:
            found = file.read_row_group(int(self.rows.groups[part]), columns=[self.column], use_threads=False)
        self._groups[part] = found[self.column].combine_chunks()
        return self._groups[part]

    def get_blocks(self, digest: str) -> Blocks:
        """Return the row groups as blocks of a dataset."""
        return Blocks(self.rows.ends, self.kept, digest)


@contextmanager
def open_parquet(url: str) -> Iterator[Any]:
    """Open a Parquet file; a UserError inside names it for any other error."""
    parquet = import_extra("pyarrow.parquet", "Parquet files", "huggingface")
    try:
        with fsspec.open(url, "rb") as opened, parquet.ParquetFile(opened, pre_buffer=True) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # of any kind for a network, or damaged bytes
        raise UserError(f"{url} cannot be read as Parquet: {first_line(error)}") from error


def _index(url: str) -> list[tuple[int, int, int]]:
    """Return for each row group of a file its number, its rows and the size of its columns in bytes."""
    with open_parquet(url) as file:
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        return [(number, each.num_rows, each.total_byte_size) for number, each in enumerate(groups) if each.num_rows]
