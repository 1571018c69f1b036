"""Where the images of tar files lie, in arrays, so that any of them is read alone; files on a disk or at a URL."""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np

from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.hashing import make_cache_key

MAX_LABEL = 20
"""Longest class in a tar file in bytes: a number."""
MAX_CLASS = 999_999
"""Largest class in a tar file, so that a wrong number does not ask for a network of as many classes."""


class TarIndex(NamedTuple):
    """The images of a tar file.

    Attributes:
        state: text that changes when the file does.
        places: offset and size of each image in bytes, (n, 2) int64.
        labels: (n,) int64, -1 for none.
    """

    state: str
    places: np.ndarray
    labels: np.ndarray


def index_tar(url: str, image: Sequence[str], label: str | None) -> TarIndex:
    """Return the index of a tar file, which is read once, until it changes.

    The files of a sample follow one another and have names that are equal up to the first period, as in WebDataset.

    Args:
        url: path or URL.
        image: extensions of images, of which a sample has one.
        label: extension of the file that holds a sample's class as a number; ``None`` for no classes.

    Raises:
        UserError: the file cannot be read, is no tar file or damaged, or has no images or classes of these extensions.
    """
    state = f"{url} {describe_url(url, 'data.source.train and data.root')}"
    path = find_cached(f"tar/{make_cache_key(f'{state} {list(image)} {label}')}.npz")
    if (content := read_cached(path)) is not None:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return TarIndex(state, arrays["places"], arrays["labels"])
    places, labels = _scan(url, image, label)
    buffer = io.BytesIO()
    np.savez(buffer, places=places, labels=labels)
    write_cached(path, buffer.getvalue())
    return TarIndex(state, places, labels)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Return a part of a file.

    Raises:
        UserError: it cannot be read (any more).
    """
    try:
        if "://" in url:
            system, path = fsspec.core.url_to_fs(url)
            content: bytes = system.cat_file(path, start=offset, end=offset + size)
        else:
            with open(url, "rb") as file:
                content = os.pread(file.fileno(), size, offset)
    except Exception as error:  # of any kind for a network
        raise UserError(f"{url} cannot be read: {first_line(error)}") from error
    if len(content) != size:
        raise UserError(f"{url} has become shorter: {size} bytes at {offset} are not there")
    return content


def describe_url(url: str, options: str) -> str:
    """Return text that changes when a file on a disk or at a URL does.

    Raises:
        UserError: it cannot be read; the message names the options to check.
    """
    try:
        if "://" not in url:
            stat = Path(url).stat()
            return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        system, path = fsspec.core.url_to_fs(url)
        info: dict[str, Any] = system.info(path)
    except Exception as error:  # of any kind for a network, or a package of fsspec that is missing
        raise UserError(f"{url} cannot be read: {first_line(error)}; check {options}") from error
    return " ".join(str(info.get(key, "")) for key in ("size", "ETag", "etag", "mtime", "LastModified"))


def _scan(url: str, image: Sequence[str], label: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Read the headers of a tar file, and the classes."""
    places, labels, others = dict[str, tuple[int, int]](), dict[str, int](), set[str]()
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, name = os.path.split(member.name)
                if not member.isfile() or name.startswith("."):
                    continue
                stem, _, extension = name.partition(".")
                key, extension = os.path.join(folder, stem), extension.lower()
                if extension in image:
                    if key in places:
                        raise UserError(f"{url} has two images for the sample {key}; name one in data.source.image")
                    places[key] = member.offset_data, member.size
                elif extension == label:
                    labels[key] = _parse_label(tar, member)
                else:
                    others.add(extension)
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep the header of each file
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{url} is not a whole tar file without compression: {first_line(error)}") from error
    if not places:
        raise UserError(
            f"{url} has no file with the extension {' or '.join(image)}; it has "
            f"{', '.join(sorted(others)[:10]) or 'no files'}: set data.source.image"
        )
    if label is not None and (missing := places.keys() - labels.keys()):
        raise UserError(f"{url} has no {min(missing)}.{label}, the class of an image; set data.source.label")
    ordered = [labels.get(key, -1) for key in places]
    return np.array([*places.values()], np.int64), np.array(ordered, np.int64)


def _parse_label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(MAX_LABEL + 1).strip() if file else b""
    if not text.isdigit() or len(text) > MAX_LABEL or int(text) > MAX_CLASS:
        raise UserError(f"{member.name} holds {text[:MAX_LABEL]!r}; a class is a number from 0 to {MAX_CLASS:,}")
    return int(text)
