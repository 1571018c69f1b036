"""Images between the three forms they have here: files, uint8 tensors, and floats in [-1, 1]."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import make_grid

from lightning_ddpm.errors import UserError


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], exactly undone by :func:`to_uint8`."""
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats -> uint8 0..255: clamp to [-1, 1], scale, round."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def decode(image: Image.Image, channels: int, size: int) -> Tensor:
    """A picture as the model sees it.

    Upright by its EXIF tag; transparency over white; 16-bit grey by its high byte; then grey or RGB; the short side
    resized to ``size`` (bicubic, antialiased) and the middle square cut out.

    Args:
        image: an open picture.
        channels: 1 for grey, 3 for RGB.
        size: height and width to come.

    Returns:
        (channels, size, size) uint8.

    Raises:
        UserError: the picture is smaller than ``size``: we do not invent pixels.
        OSError: its data cannot be read.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"pixels of 32 bits (mode {image.mode}) have no agreed white; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if channels == 1 else "RGB")
    if min(image.size) < size:
        raise UserError(too_small(image.size, size))
    if min(image.size) > size:
        image = transforms.resize(image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels: Tensor = transforms.pil_to_tensor(transforms.center_crop(image, [size, size]))
    return pixels


def too_small(got: tuple[int, int], size: int) -> str:
    """What is wrong with a picture that is smaller than what is asked of it."""
    return f"the image is {got[0]}x{got[1]}, smaller than the {size}x{size} asked for; lower data.source.size"


def save(pixels: Tensor, file: Path | BinaryIO) -> None:
    """Write one uint8 image (c, h, w) as a PNG."""
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).cpu().numpy()).save(file, format="PNG")


def grid(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Lay uint8 images (n, c, h, w) out in a square, or in that many columns, small ones enlarged: (3, H, W) uint8."""
    enlarge = max(1, 48 // pixels.shape[-1])
    pixels = pixels.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    columns = columns or max(1, round(len(pixels) ** 0.5))
    picture: Tensor = make_grid(pixels, nrow=columns, padding=2, pad_value=255)
    return picture
