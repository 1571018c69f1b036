"""Folders of images to compare others with, read as training reads them, and samples of any values."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_ddpm.data.array_sources import ArrayFolder
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_folder import ImageFolder
from lightning_ddpm.data.image_paths import list_images
from lightning_ddpm.data.rasters import read_array
from lightning_ddpm.data.sample_images import open_sample_folder
from lightning_ddpm.data.splits import find_splits
from lightning_ddpm.data.tiff import TIFF
from lightning_ddpm.data.value_range import DTYPES
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize

ARRAYS = (".npy", ".npz")
ANY_RANGE: dict[str, Any] = {"mean": 0.0, "std": 1.0}
"""Options of a source that reads values of any range: metrics compare the numbers themselves."""


def open_training_folder(
    root: Path,
    channels: int,
    size: ImageSize,
    dtype: str = "uint8",
    on_error: Literal["refuse", "skip"] = "refuse",
    max_skipped: float = 0.01,
) -> ImageDataset:
    """Open a folder as :class:`ImageFolder`, or if it has .npy or .npz files :class:`ArrayFolder`, does for training.

    These are the training images of a folder with splits, and all images of another one.

    Args:
        root: the folder.
        channels, size, dtype, on_error, max_skipped: those of :class:`ImageFolder`; arrays are neither converted nor
            skipped.

    Raises:
        UserError: the folder cannot be trained on with these options.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name one that holds images")
    if _holds_arrays(root):
        return _open_arrays(root)
    any_range: dict[str, Any] = {} if dtype == "uint8" else ANY_RANGE
    source = ImageFolder(channels, size, 0.02, on_error, max_skipped, dtype, **any_range)
    source.prepare(root)
    return source.open(root, "train") if find_splits(root) else source.open_all(root)


def open_samples(folder: Path) -> ImageDataset:
    """Open finished images of one size and type: arrays, TIFF files, PNG files of 8 or 16 bits, other files of 8 bits.

    None is resized, and values other than those of 8 bits are not converted.

    Raises:
        UserError: as :func:`~lightning_ddpm.data.sample_images.open_sample_folder`.
    """
    if not folder.is_dir():
        return open_sample_folder(folder)
    if _holds_arrays(folder):
        return _open_arrays(folder)
    paths = list_images(folder)
    if paths:
        try:
            array = read_array(paths[0])[1]
        except UserError:  # open_sample_folder names all files that cannot be read
            return open_sample_folder(folder)
        if array.dtype.name != "uint8" and paths[0].suffix.lower() in TIFF:
            return _open_arrays(folder)
        if array.dtype.name in DTYPES and array.dtype.name != "uint8":
            return open_training_folder(folder, len(array), (array.shape[1], array.shape[2]), array.dtype.name)
    return open_sample_folder(folder)


def _holds_arrays(folder: Path) -> bool:
    """Return whether the images of a folder are arrays; UserError if some are and others are not."""
    arrays = list_images(folder, extensions=ARRAYS)
    others = [each for each in list_images(folder) if each.suffix.lower() not in TIFF] if arrays else []
    if others:
        raise UserError(
            f"{folder} holds arrays, such as {arrays[0]}, and image files, such as {others[0]}; move one kind elsewhere"
        )
    return bool(arrays)


def _open_arrays(root: Path) -> ImageDataset:
    source = ArrayFolder(**ANY_RANGE)
    source.inspect(root)
    source.prepare(root)
    return source.open(root, "train") if find_splits(root, source.extensions) else source.open_all(root)


def check_same_kind(found: Tensor, expected: Tensor, what: str) -> None:
    """Check that images to compare have one shape and type.

    Raises:
        UserError: they have not.
    """
    if found.shape != expected.shape:
        shapes = ("x".join(map(str, each.shape)) for each in (found, expected))
        raise UserError(
            "{} has images of {} and the evaluated ones are {} (channels x height x width); give a reference of the "
            "same shape".format(what, *shapes)
        )
    if found.dtype != expected.dtype:
        kinds = (str(each.dtype).removeprefix("torch.") for each in (found, expected))
        raise UserError("{} has values of {} and the evaluated images of {}; give one of the same".format(what, *kinds))
