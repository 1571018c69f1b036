"""One file of all images: a .npy file, which is mapped into memory, HDF5 or zarr, which read an image at a time."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data.array_files import ArrayImages, get_shape, get_type
from lightning_ddpm.data.datasets import describe_file
from lightning_ddpm.data.file_table import FileTable
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import import_extra
from lightning_ddpm.utils.hashing import hash_text

HDF5 = (".h5", ".hdf5", ".hdf", ".nc")
ZARR = (".zarr", ".zip")


class ArrayFileImages(ArrayImages):
    """The images (n, c, h, w) or (n, h, w) of a file.

    Args:
        path: a .npy, HDF5 or zarr file; the last may be a folder.
        key: name of the array in an HDF5 file or a zarr group; ``None`` for the only one.
        labels: .npy file beside it, or an array in it, of classes (n,); ``None`` for none.
    """

    def __init__(self, path: Path, key: str | None = None, labels: str | None = None) -> None:
        self.path, self.key = path, key
        self._open()
        shape, dtype = tuple(self._images.shape), np.dtype(self._images.dtype)
        if not all(shape) or not shape:
            raise UserError(f"{path} is not a file of images")
        self.shape, self.dtype = get_shape(shape[1:], str(path)), get_type(dtype, str(path))
        self.labels = self._read_labels(labels, shape[0])
        self.state = _describe(path) + (f" {key}" if key else "")  # values of other arrays of the file differ

    def _open(self) -> None:
        self._images, self._process = open_array(self.path, self.key), os.getpid()

    def _read_labels(self, name: str | None, n: int) -> Tensor:
        if name is None:
            return torch.full((n,), -1)
        place = (self.path.parent / name, None) if name.endswith(".npy") else (self.path, name)
        try:
            labels = np.asarray(open_array(*place))
        except UserError:
            raise
        except Exception as error:  # of any kind where a chunk is damaged
            raise UserError(f"the classes {name} of {self.path} cannot be read: {first_line(error)}") from error
        if labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min() < -1:
            raise UserError(
                f"the classes {name} of {self.path} are {labels.dtype.name} of shape {labels.shape}; expected a number "
                f"from 0, or -1 for none, for each of the {n} images"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def __getstate__(self) -> dict[str, object]:
        return {name: each for name, each in vars(self).items() if name != "_images"}  # workers open the file, too

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open()

    def read(self, index: int) -> np.ndarray:
        if self._process != os.getpid() and not isinstance(self._images, np.ndarray):
            self._open()  # a forked process must not share HDF5's file
        try:
            array = np.asarray(self._images[index])
        except Exception as error:  # of any kind where a chunk is damaged
            raise UserError(f"it cannot be read: {first_line(error)}") from error
        return array[None] if array.ndim == 2 else array

    def name(self, index: int) -> str:
        return f"image {index} of {self.path}"

    def get_key(self, index: int) -> str:
        return str(index)


def open_array(path: Path, key: str | None = None) -> Any:
    """Return an array in a file, whose values are read when it is indexed.

    Raises:
        UserError: there is no such file or array, it is damaged, or the package that reads it is not installed.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}; check data.root and data.source.file")
    suffix = path.suffix.lower()
    try:
        if suffix in HDF5:
            return _choose(import_extra("h5py", "HDF5 files", "arrays").File(path, "r"), key, path)
        if suffix in ZARR:
            return _choose(import_extra("zarr", "zarr files", "arrays").open(str(path), mode="r"), key, path)
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            found.close()
            raise UserError(f"{path} is an npz file, which cannot be mapped into memory; save its array as .npy")
        return found
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        kind = "HDF5" if suffix in HDF5 else "zarr" if suffix in ZARR else ".npy"
        raise UserError(f"{path} is not a whole {kind} file of numbers: {first_line(error)}") from error


def _choose(found: Any, key: str | None, path: Path) -> Any:
    """Return the array of a name, or the only one, in a group; a zarr file may be an array itself."""
    if hasattr(found, "shape"):
        return found
    names = sorted(name for name in found if hasattr(found[name], "shape"))
    if key is None and len(names) == 1:
        return found[names[0]]
    if key is None or key not in found or not hasattr(found[key], "shape"):
        what = "several arrays" if key is None else f"no array {key}"
        raise UserError(f"{path} has {what}; it has {', '.join(names) or 'none'}: set data.source.key and labels")
    return found[key]


def _describe(path: Path) -> str:
    """Return text that changes when the file or a file in the folder does."""
    if path.is_file():
        return describe_file(path)
    return hash_text(f"{each}\n" for each in FileTable.of(sorted(path.rglob("*"))).describe())
