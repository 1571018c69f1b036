"""The files of a set: 000000.png, 000001.png, ..., or .npy or .tif for values that a PNG does not hold."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_ddpm.data.image_io import open_image, save_image
from lightning_ddpm.data.tiff import read_tiff, write_tiff
from lightning_ddpm.data.value_range import UINT8, ValueRange, to_array, to_tensor
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.extras import import_extra
from lightning_ddpm.utils.files import write_atomically

NUMBERED = "[0-9]" * 6 + ".[npt][npi][gyf]"  # .png, .npy and .tif
SUFFIXES = {"png": ".png", "npy": ".npy", "tiff": ".tif"}
THREADS = 8
"""Images that are compressed at a time: one thread would let a GPU wait for large ones."""


def choose_suffix(channels: int, values: ValueRange = UINT8, form: str | None = None) -> str:
    """Return the suffix of a set's files.

    Args:
        channels: number of channels of the images.
        values: type of their values.
        form: one of :data:`SUFFIXES`; ``None`` for ``.png`` for gray and RGB images of 8 bits and gray ones of 16, and
            ``.npy`` for all other values.

    Raises:
        UserError: files of this form cannot hold the images.
    """
    fits_png = (values.dtype, channels) in (("uint8", 1), ("uint8", 3), ("uint16", 1))
    if form == "png" and not fits_png:
        raise UserError(
            f"PNG files cannot hold images of {channels} channels of {values.dtype}; write them as tiff or npy"
        )
    if form == "tiff":
        import_extra("tifffile", "TIFF files", "tiff")
    return SUFFIXES[form] if form else SUFFIXES["png" if fits_png else "npy"]


def get_image_path(folder: Path, index: int, suffix: str = ".png") -> Path:
    """Return the path of an image."""
    return folder / f"{index:06d}{suffix}"


def write_images(
    folder: Path, start: int, pixels: Tensor, values: ValueRange = UINT8, suffix: str | None = None
) -> None:
    """Write images start, start + 1, ..., (b, c, h, w), in their own type.

    Each is whole or absent for a process that reads the folder. They are on the disk once
    :func:`lightning_ddpm.utils.files.flush_files` returns.

    Raises:
        OSError: an image cannot be written; of several failures, that of the lowest index.
    """
    suffix = suffix or choose_suffix(pixels.shape[1], values)

    def write(index: int, image: Tensor) -> None:
        write_atomically(get_image_path(folder, index, suffix), partial(_save, image, values, suffix), flush=False)

    with ThreadPoolExecutor(min(len(pixels), THREADS)) as threads:
        list(threads.map(write, range(start, start + len(pixels)), pixels.cpu()))


def _save(image: Tensor, values: ValueRange, suffix: str, file: BinaryIO) -> None:
    if suffix == ".npy":
        np.save(file, to_array(image, values), allow_pickle=False)
    elif suffix == ".tif":
        write_tiff(to_array(image, values), file)
    elif values.dtype == "uint16":
        Image.fromarray(to_array(image[0], values)).save(file, format="PNG")
    else:
        save_image(image, file)


def read_numbered(path: Path, values: ValueRange = UINT8) -> Tensor:
    """Return an image of a set, (c, h, w), as it was written.

    Raises:
        UserError: it is not a whole file of such values.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix == ".tif":
            array = read_tiff(path)
        else:
            with open_image(path) as image:
                image.verify()  # the checksums, which decoding does not compare
            with open_image(path) as image:
                if values.dtype == "uint8":
                    return pil_to_tensor(image)  # type: ignore[no-any-return]
                array = np.asarray(image)[None]
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path} is damaged") from error
    if array.dtype.name != values.dtype:
        raise UserError(f"{path} holds {array.dtype.name}, expected {values.dtype}")
    return to_tensor(array)


def is_whole(path: Path, shape: tuple[int, int, int], values: ValueRange = UINT8) -> bool:
    """Return whether a file holds an image of this shape and type whose every byte can be read."""
    try:
        return not path.is_symlink() and tuple(read_numbered(path, values).shape) == shape
    except UserError:
        return False


def read_first(folder: Path, n: int, suffix: str, values: ValueRange = UINT8) -> Tensor:
    """Return the first n images of a set, (n, c, h, w)."""
    return torch.stack([read_numbered(get_image_path(folder, index, suffix), values) for index in range(n)])
