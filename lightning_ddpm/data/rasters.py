"""Read image files whose values are kept as they are: 16 bits, floats, and any number of channels."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, PpmImagePlugin
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from lightning_ddpm.data.image_io import DecodedImage, find_covering, open_image
from lightning_ddpm.data.tiff import MAGIC, read_tiff
from lightning_ddpm.data.value_range import DTYPES, ValueRange, to_tensor
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import import_extra
from lightning_ddpm.utils.image_size import ImageSize, format_size, get_sides

PNG = b"\x89PNG\r\n\x1a\n"
COLORS_OF_16_BITS = (b"\x10\x02", b"\x10\x04", b"\x10\x06")
DEPTH = slice(24, 26)
"""Place of a PNG's bits for each channel and of its type of colour, in its header."""


def read_raster(file: Path | BinaryIO, channels: int, size: ImageSize, values: ValueRange) -> DecodedImage:
    """Read an image without conversion of its values, and fit it to a size; it is not turned by its orientation.

    A larger image is resized (bicubic, antialiased) to the smallest that covers the size, within the least and the
    greatest value of each of its channels, and its center is cropped.

    Args:
        file: a TIFF, or any format that Pillow reads; 16 bits of a PNG are kept.
        channels: number of channels that it must have.
        size: height and width of the result.
        values: type and range that its values must have.

    Raises:
        UserError: it cannot be read, or is not such an image.
    """
    form, array = read_array(file)
    if len(array) != channels:
        raise UserError(f"it has {len(array)} channels, expected {channels}; set data.source.channels")
    values.check(array)
    mode = array.dtype.name if channels == 1 else f"{channels} x {array.dtype.name}"
    return DecodedImage(form, mode, (array.shape[2], array.shape[1]), _fit(to_tensor(array), *get_sides(size), values))


def _fit(pixels: Tensor, height: int, width: int, values: ValueRange) -> Tensor:
    if covering := find_covering(pixels.shape[1], pixels.shape[2], height, width):
        if pixels.is_floating_point() and pixels.isnan().any():
            raise UserError(
                f"it has NaN and is {format_size(pixels.shape[1:])}: images in which values are missing are not "
                "resized; set data.source.size to their own"
            )
        low, high = pixels.double().amin((1, 2), True), pixels.double().amax((1, 2), True)
        x = transforms.resize(pixels.double(), covering, interpolation=InterpolationMode.BICUBIC, antialias=True)
        x = torch.minimum(torch.maximum(x, low), high)
        pixels = (x if values.dtype.startswith("float") else x.round()).to(DTYPES[values.dtype])
    return transforms.center_crop(pixels, [height, width]).contiguous()  # type: ignore[no-any-return]


def read_array(file: Path | BinaryIO) -> tuple[str, np.ndarray]:
    """Return the name of a file's format, and its image (c, h, w) in the file's own type."""
    if isinstance(file, Path):
        try:
            with file.open("rb") as opened:
                return read_array(opened)
        except OSError as error:
            raise UserError(first_line(error)) from error
    begin = file.read(DEPTH.stop)
    file.seek(0)
    if begin[:4] in MAGIC:
        return "TIFF", read_tiff(file)
    if begin[: len(PNG)] == PNG and begin[DEPTH] in COLORS_OF_16_BITS:
        return "PNG", _read_16_bit_colors(file)
    with open_image(file) as image:
        image.seek(0)
        _check_values(image)
        array = np.asarray(image)
        if image.format == "PPM" and array.dtype == np.int32:  # Pillow has no other type for its 16 bits
            array = array.astype(np.uint16)
        return image.format or "", array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _check_values(image: Image.Image) -> None:
    """Raise a UserError for a file whose values Pillow does not return, or that are none; it reads no pixels."""
    if image.mode in ("P", "PA"):
        raise UserError("it has a palette, whose indices are not values; save it as grayscale or RGB")
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.mode != "1":
        codec, _, _, options = image.tile[0]
        full = 65535 if image.mode == "I" else 255
        declared = options[-1] if codec != "raw" and isinstance(options, tuple) else full
        if declared != full:
            raise UserError(f"its largest value is {declared}, and Pillow scales its values to {full}; save it as TIFF")


def _read_16_bit_colors(file: BinaryIO) -> np.ndarray:
    """Return the image of a PNG of 16 bits with colours or alpha, of which Pillow keeps 8."""
    codecs = import_extra("imagecodecs", "PNG files with colors of 16 bits", "tiff")
    with open_image(file) as image:  # for its limit on pixels, and the checksums
        image.verify()
    file.seek(0)
    try:
        return np.moveaxis(codecs.png_decode(file.read()), 2, 0)
    except Exception as error:  # of any kind on damaged data
        raise UserError(f"the image cannot be read: {first_line(error)}") from error
