"""Convert images between files, uint8 tensors and floats in [-1, 1]."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import make_grid

from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.image_size import ImageSize, get_sides


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 in [-1, 1]; :func:`to_uint8` is its exact inverse.

    Raises:
        UserError: the pixels are not uint8: their range is not known.
    """
    return UINT8.to_float(pixels)


def to_uint8(x: Tensor) -> Tensor:
    """Map floats to uint8 0..255: clamp to [-1, 1], scale and round."""
    return UINT8.to_data(x)


FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
"""Formats that are read, whatever the file's name; Pillow would open PostScript with another program."""

QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations of images whose stored height is their width."""

GRID_PADDING = 2
TITLE_HEIGHT = 14
TITLE_SIZES = (10, 9, 8)
LEAST_SIDE = 48
"""For :func:`arrange_grid`: pixels between images, height of the titles, font sizes in order of preference, and the
longest side that small images are enlarged to."""


class DecodedImage(NamedTuple):
    """The content of a file: Pillow's ``format`` and ``mode``, ``size`` (width, height) and the decoded ``pixels``."""

    format: str
    mode: str
    size: tuple[int, int]
    pixels: Tensor


@contextmanager
def open_image(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open the image in a file; its pixels are decoded when the caller first uses them.

    Raises:
        UserError: the file, or what the caller does with the image, fails: it is of another format, has more pixels
            than Pillow's limit against decompression bombs, or is damaged.
    """
    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice the limit
    try:
        with _allow_long_metadata(), Image.open(file, formats=FORMATS) as image:
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"the image has more than {limit:,} pixels, Pillow's limit against decompression bombs; save it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"the file is not an image in a supported format ({', '.join(FORMATS)})") from error
    except Exception as error:  # decoders raise any exception on damaged data
        raise UserError(f"the image cannot be read: {first_line(error)}") from error


@contextmanager
def _allow_long_metadata() -> Iterator[None]:
    """Let a PNG's texts and colour profile be as long as Pillow lets all texts be together, 64 MiB, inside the context.

    Pillow refuses a single one above 1 MiB, although neither changes the pixels; it has no argument for this.
    """
    before = PngImagePlugin.MAX_TEXT_CHUNK
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = before


def check_channels(*channels: int) -> None:
    """Raise a UserError unless all of these are numbers of channels that :func:`decode_image` converts to."""
    if wrong := [each for each in channels if each not in (1, 3)]:
        raise UserError(f"channels must be 1 (grayscale) or 3 (RGB), got {wrong[0]}")


def read_image(file: Path | BinaryIO, channels: int, size: ImageSize) -> DecodedImage:
    """Open and decode the image in a file.

    Raises:
        UserError: :func:`open_image` or :func:`decode_image` refuses it.
    """
    with open_image(file) as image:
        return DecodedImage(image.format or "", image.mode, image.size, decode_image(image, channels, size))


def read_upright_size(file: Path | BinaryIO) -> tuple[int, int]:
    """Return width and height of the image in a file when it is turned upright by its EXIF orientation.

    No pixels are decoded; an orientation that a PNG has behind its pixels is therefore not seen.

    Raises:
        UserError: :func:`open_image` refuses it.
    """
    with open_image(file) as image:
        has_exif = image.format != "PNG" or "exif" in image.info  # else Pillow would decode a PNG to look for it
        orientation, size = image.getexif().get(ExifTags.Base.Orientation) if has_exif else None, image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # versions of Pillow differ in whether theirs is upright
            size = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        return size[::-1] if orientation in QUARTER_TURNS else size


def decode_image(image: Image.Image, channels: int, size: ImageSize) -> Tensor:
    """Convert an image to the pixels that a model is given. Every file is converted here and nowhere else:

    1. An animation or a file of several pages is represented by its first frame or page.
    2. The image is turned upright by its EXIF orientation.
    3. Channels of 16 bits keep their high byte. Channels of 32 bits, integer or floating point, are refused, because
       their white level is not defined.
    4. Transparency (RGBA, grayscale with alpha, a transparent palette entry or colour) is composited over white.
    5. Palettes are looked up; 1 bit is black and white; CMYK, YCbCr and LAB become RGB by Pillow's formulas. Embedded
       colour profiles and gamma are not applied.
    6. RGB becomes grayscale by its ITU-R 601-2 luminance; grayscale becomes RGB by repeating its channel.
    7. The image is resized (bicubic, antialiased), with its ratio of sides, to the smallest that covers ``size``, and
       the center is cropped: for a square, the short side is resized. Images are never enlarged.

    Args:
        image: an open image.
        channels: 1 for grayscale, 3 for RGB.
        size: height and width of the result; one number for a square.

    Returns:
        (channels, height, width) uint8.

    Raises:
        UserError: the image is smaller than ``size``, or has 32 bits per channel.
        OSError: its data cannot be read.
    """
    image.seek(0)
    check_bits(image)
    wide = _has_16_bits(image)
    image = ImageOps.exif_transpose(image)
    if wide:
        image = _take_high_byte(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    return transforms.pil_to_tensor(_fit(image, *get_sides(size)))  # type: ignore[no-any-return]


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize an image to the smallest that covers height and width, and crop its center."""
    if covering := find_covering(image.height, image.width, height, width):
        image = transforms.resize(image, covering, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return transforms.center_crop(image, [height, width])  # type: ignore[no-any-return]


def find_covering(image_height: int, image_width: int, height: int, width: int) -> list[int] | None:
    """Return height and width of the smallest image of the same ratio that covers others; ``None`` for its own.

    Raises:
        UserError: the image is smaller.
    """
    if image_height < height or image_width < width:
        raise UserError(
            f"the image is {image_width}x{image_height}, less than {width}x{height}"
            f"{'' if height == width else ' (width x height)'}; lower data.source.size"
        )
    if image_height == height or image_width == width:
        return None
    if image_width * height <= image_height * width:
        return [image_height * width // image_width, width]
    return [height, image_width * height // image_height]


def check_bits(image: Image.Image) -> None:
    """Raise UserError for 32 bits per channel, integer or floating point; it reads no pixels."""
    if image.mode in ("I", "F") and not _has_16_bits(image):
        raise UserError(f"32-bit pixels (mode {image.mode}) have no defined white level; save it with 8 or 16 bits")


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # PPM: 0..65535


def _take_high_byte(image: Image.Image) -> Image.Image:
    """Convert 16-bit grayscale to 8 bits, with its transparent level as alpha; Pillow does so for 16-bit colours."""
    levels = np.asarray(image)
    high = Image.fromarray((levels >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        high.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return high


def save_image(pixels: Tensor, file: Path | BinaryIO) -> None:
    """Write a uint8 image (c, h, w) as a PNG."""
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy()).save(file, format="PNG")


def arrange_grid(pixels: Tensor, columns: int | None = None, titles: Sequence[str] | None = None) -> Tensor:
    """Arrange images in a grid, row by row; images smaller than 48 pixels are enlarged by whole pixels.

    Args:
        pixels: (n, c, h, w) uint8.
        columns: number of columns; by default the grid is about square.
        titles: one text for each column, written above it and shortened to its width.

    Returns:
        (3, H, W) uint8; titles add ``TITLE_HEIGHT`` rows at the top.

    Raises:
        ValueError: the number of titles differs from the number of columns.
    """
    scale = max(1, LEAST_SIDE // max(pixels.shape[-2:]))
    pixels = pixels.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    columns = columns or max(1, round(len(pixels) ** 0.5))
    grid: Tensor = make_grid(pixels, nrow=columns, padding=GRID_PADDING, pad_value=255)
    if titles is None:
        return grid
    if len(titles) != columns:
        raise ValueError(f"a grid of {columns} columns needs {columns} titles, got {len(titles)}")
    header, width = Image.new("L", (grid.shape[2], TITLE_HEIGHT), "white"), pixels.shape[-1]
    fonts = [ImageFont.load_default(size) for size in TITLE_SIZES]
    font = next((font for font in fonts if all(font.getbbox(title)[2] <= width for title in titles)), fonts[-1])
    for column, title in enumerate(titles):
        text = _shorten_title(title, width, font)
        left = column * (width + GRID_PADDING) + (GRID_PADDING if len(pixels) > 1 else 0)  # one image has no padding
        center = left + (width - font.getbbox(text)[2]) // 2
        ImageDraw.Draw(header).text((center, 1), text, fill="black", font=font)
    return torch.cat([transforms.pil_to_tensor(header).expand(3, -1, -1), grid], dim=1)


def _shorten_title(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut text that is wider than this many pixels; it then ends with a period."""
    text = " ".join(title.split())
    kept = len(text)
    while kept and font.getbbox(text)[2] > width:
        kept -= 1
        text = text[:kept].rstrip() + "."
    return text
