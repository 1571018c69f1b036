"""Read and write TIFF files of any type and number of channels, by tifffile."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.extras import import_extra

TIFF = (".tif", ".tiff")
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF or BigTIFF, in either byte order."""


def read_tiff(file: Path | BinaryIO) -> np.ndarray:
    """Return the first image in a TIFF, (c, h, w): its channels are samples of pixels, planes, or pages of one series.

    Grayscale of which 0 is white (MINISWHITE) is reversed.

    Raises:
        UserError: the file is damaged or too large, the image has more axes, or tifffile is not installed.
    """
    tifffile = import_extra("tifffile", "TIFF files", "tiff")
    try:
        with tifffile.TiffFile(file) as tiff:
            series = tiff.series[0]
            if series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
                raise UserError("it has a palette, whose indices are not values; save it as grayscale or RGB")
            axes = [(name, n) for name, n in zip(series.axes, series.shape, strict=True) if n > 1 or name in "YX"]
            names, limit = "".join(name for name, _ in axes), Image.MAX_IMAGE_PIXELS
            if names.count("Y") != 1 or names.count("X") != 1 or len(names) > 3 or names.find("X") < names.find("Y"):
                raise UserError(
                    f"its axes are {series.axes} of {'x'.join(map(str, series.shape))}; expected height, width and "
                    "channels alone"
                )
            sides = dict(axes)
            if limit is not None and sides["Y"] * sides["X"] > limit:
                raise UserError(f"the image has more than {limit:,} pixels, the limit of this program; save it smaller")
            array: np.ndarray = series.asarray().reshape([n for _, n in axes])
            if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                array = _reverse(array, series.keyframe)
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"it is not a whole TIFF: {first_line(error)}") from error
    if array.ndim == 2:
        return array[None]
    return np.moveaxis(array, next(place for place, name in enumerate(names) if name not in "YX"), 0)


def _reverse(array: np.ndarray, page: Any) -> np.ndarray:
    """Return the values of an image whose 0 is white as those of one whose 0 is black, as Pillow does for 8 bits."""
    if array.dtype.kind != "u" or page.samplesperpixel != 1:
        raise UserError(
            f"its lowest value is white (MINISWHITE), which has no meaning for {page.samplesperpixel} x {array.dtype}; "
            "save it as MINISBLACK"
        )
    white: int = 2**page.bitspersample - 1
    return (white - array).astype(array.dtype)


def write_tiff(array: np.ndarray, file: BinaryIO) -> None:
    """Write an image (c, h, w) as a TIFF of one page with a plane for each channel, compressed without loss."""
    tifffile = import_extra("tifffile", "TIFF files", "tiff")
    planes = {"planarconfig": "separate"} if len(array) > 1 else {}
    tifffile.imwrite(
        file,
        array if len(array) > 1 else array[0],
        photometric="rgb" if len(array) == 3 and array.dtype.kind == "u" else "minisblack",
        compression="zlib",
        metadata=None,
        **planes,
    )
