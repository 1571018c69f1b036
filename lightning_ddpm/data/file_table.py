"""The paths of many files with their sizes and dates, in some 60 bytes each."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

Stat = tuple[int, int, int]
"""Size in bytes, and times of the last modification and change in ns; (-errno, 0, 0) if they cannot be read."""


class FileTable(Sequence[Path]):
    """Paths below a folder, in arrays: they are small, pickle fast, and forked processes share their memory.

    Args:
        root: the folder.
        names: all names relative to it, as the operating system's bytes, one after the other; (bytes,) uint8.
        ends: the end of each name in ``names``, (n,) int64.
        stats: the :data:`Stat` of each file, (n, 3) int64.
    """

    def __init__(self, root: Path, names: np.ndarray, ends: np.ndarray, stats: np.ndarray) -> None:
        self.root, self.names, self.ends, self.stats = root, names, ends, stats

    @classmethod
    def build(cls, root: Path, files: Iterable[tuple[str, Stat]]) -> "FileTable":
        """Return the table of files given by their names relative to the folder and their stats, in this order."""
        blob, ends, stats = bytearray(), [], []
        for name, stat in files:
            blob += os.fsencode(name)
            ends.append(len(blob))
            stats.append(stat)
        table = np.array(stats, np.int64).reshape(-1, 3)
        return cls(root, np.frombuffer(bytes(blob), np.uint8), np.array(ends, np.int64), table)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "FileTable":
        """Return the table of any paths."""
        if isinstance(paths, FileTable):
            return paths
        return cls.build(Path(), ((os.fspath(path), get_stat(path)) for path in paths))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self.root / os.fsdecode(self._get_name(index))

    def __add__(self, other: "FileTable") -> "FileTable":
        """Return the files of both tables, which have the same folder."""
        if self.root != other.root:
            raise ValueError(f"the tables are of {self.root} and {other.root}")
        ends = np.concatenate([self.ends, other.ends + len(self.names)])
        stats = np.concatenate([self.stats, other.stats])
        return FileTable(self.root, np.concatenate([self.names, other.names]), ends, stats)

    def divide(self, n: int) -> tuple["FileTable", "FileTable"]:
        """Return the tables of the first n files and of the others."""
        end = self.ends[n - 1] if n else 0
        first = FileTable(self.root, self.names[:end], self.ends[:n], self.stats[:n])
        return first, FileTable(self.root, self.names[end:], self.ends[n:] - end, self.stats[n:])

    def _get_name(self, index: int) -> bytes:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.names[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()

    def iterate_names(self) -> Iterator[str]:
        """Yield the names relative to the folder."""
        start = 0
        for end in self.ends.tolist():
            yield os.fsdecode(self.names[start:end].tobytes())
            start = end

    def describe(self) -> Iterator[str]:
        """Yield text on each file that changes when the file does: its absolute path, size and times."""
        folder = os.path.join(self.root.absolute(), "")
        for name, (size, modified, changed) in zip(self.iterate_names(), self.stats, strict=True):
            state = f"{size} {modified} {changed}" if size >= 0 else os.strerror(int(-size))
            yield f"{escape(folder + name if not os.path.isabs(name) else name)} {state}"


class Names(Sequence[str], ABC):
    """Text for messages, one for each image, that is made when it is read: a list would take memory for each image."""

    @abstractmethod
    def get(self, index: int) -> str:
        """Return the text of the image at an index from 0."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.get(each) for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.get(index % len(self))


class FileNames(Names):
    """The paths in a table as text for messages.

    Args:
        files: the table.
    """

    def __init__(self, files: FileTable) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def get(self, index: int) -> str:
        return escape(self._files[index])


class ChosenNames(Names):
    """Some of many names.

    Args:
        names: all names.
        chosen: indices of the chosen ones, (n,) int64.
    """

    def __init__(self, names: Sequence[str], chosen: np.ndarray) -> None:
        self._names, self._chosen = names, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def get(self, index: int) -> str:
        return self._names[int(self._chosen[index])]


def get_stat(file: Path | os.DirEntry[str]) -> Stat:
    """Return the stat of the file that a path leads to."""
    try:
        found = file.stat()
    except OSError as error:  # such as a broken link: reading it reports the error
        return -(error.errno or 1), 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def escape(path: str | Path) -> str:
    """Return a path as text, with bytes that are not UTF-8 escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")
