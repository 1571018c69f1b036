"""Padding inside networks that need height and width to be multiples of a number."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from lightning_ddpm.utils.image_size import pad_size


def get_padding(x: Tensor, multiple: int) -> tuple[int, int, int, int]:
    """Return the pixels (left, right, top, bottom) that make height and width of (b, c, h, w) multiples of a number."""
    height, width = x.shape[-2:]
    padded_height, padded_width = pad_size((height, width), multiple)
    down, across = padded_height - height, padded_width - width
    return across // 2, across - across // 2, down // 2, down - down // 2


def pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Return (b, c, h, w) with zeros around it; without padding ``x`` itself."""
    return functional.pad(x, list(padding)) if any(padding) else x


def crop(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Return (b, c, h, w) without its padding."""
    return pad(x, [-each for each in padding])
