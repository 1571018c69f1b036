"""Images between the three forms they have here: files, uint8 tensors, and floats in [-1, 1]."""

import logging
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import make_grid

from lightning_ddpm.utils.errors import UserError, first_line


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], exactly undone by :func:`to_uint8`."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats -> uint8 0..255: clamp to [-1, 1], scale, round."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
"""What files may hold, whatever they are called; Pillow would hand PostScript to another program."""

# A picture over the limit is refused, not warned of; what else Pillow says (of odd metadata, mostly) leaves the
# pixels right, or comes with an error.
logging.getLogger("PIL").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class DecodedImage(NamedTuple):
    """What a file holds: ``format`` and ``mode`` as Pillow names them, (width, height), and the decoded ``pixels``."""

    format: str
    mode: str
    size: tuple[int, int]
    pixels: Tensor


def read_image(file: Path | BinaryIO, channels: int, size: int) -> DecodedImage:
    """Open and decode the picture in a file; see :func:`decode_image`.

    Raises:
        UserError: it cannot be read, is larger than Pillow's limit against decompression bombs, or breaks a rule of
            :func:`decode_image`.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            form, mode, shape = image.format or "", image.mode, image.size
            return DecodedImage(form, mode, shape, decode_image(image, channels, size))
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"the image has more than {Image.MAX_IMAGE_PIXELS:,} pixels, Pillow's limit against decompression bombs; "
            "save it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"it is no image of a format that is read here ({', '.join(FORMATS)})") from error
    except Exception as error:  # a decoder that is given damaged data fails in any way
        raise UserError(f"the image cannot be read: {first_line(error)}") from error


def decode_image(image: Image.Image, channels: int, size: int) -> Tensor:
    """A picture as the model sees it: the one way from a file's pixels to a model's.

    1. Of an animation, or several pages, the first.
    2. Turned upright by its EXIF orientation.
    3. 16 bits a channel: the high byte. 32 bits, whole or floating: refused, they have no agreed white.
    4. Transparency (RGBA, grey with alpha, a palette's or a grey's or a colour's transparent entry) over white.
    5. Palettes are looked up; 1 bit is black and white; CMYK, YCbCr and LAB become RGB by Pillow's formulas. Embedded
       colour profiles and gamma are not applied.
    6. Grey asked for: ITU-R 601-2 luminance of RGB. RGB asked for: grey three times.
    7. The short side resized to ``size`` (bicubic, antialiased), the middle square cut out; never enlarged.

    Args:
        image: an open picture.
        channels: 1 for grey, 3 for RGB.
        size: height and width to come.

    Returns:
        (channels, size, size) uint8.

    Raises:
        UserError: the picture is smaller than ``size``, or of 32 bits.
        OSError: its data cannot be read.
    """
    image.seek(0)
    wide_grey = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # PPM: 0..65535
    image = ImageOps.exif_transpose(image)
    if wide_grey:
        image = _take_high_byte(image)
    elif image.mode in ("I", "F"):
        raise UserError(f"pixels of 32 bits (mode {image.mode}) have no agreed white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    if min(image.size) < size:
        raise UserError(
            f"the image is {image.width}x{image.height}, smaller than the {size}x{size} asked for; "
            "lower data.source.size"
        )
    if min(image.size) > size:
        image = transforms.resize(image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels: Tensor = transforms.pil_to_tensor(transforms.center_crop(image, [size, size]))
    return pixels


def _take_high_byte(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8, its transparent level as alpha; Pillow reads colours of 16 bits likewise."""
    levels = np.asarray(image)
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey


def save_image(pixels: Tensor, file: Path | BinaryIO) -> None:
    """Write one uint8 image (c, h, w) as a PNG."""
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy()).save(file, format="PNG")


def arrange_grid(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Lay uint8 images (n, c, h, w) out in a square, or in that many columns, small ones enlarged: (3, H, W) uint8."""
    enlarge = max(1, 48 // pixels.shape[-1])
    pixels = pixels.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    columns = columns or max(1, round(len(pixels) ** 0.5))
    picture: Tensor = make_grid(pixels, nrow=columns, padding=2, pad_value=255)
    return picture
