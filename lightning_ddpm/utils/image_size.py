"""The size of images: height and width, for which one number stands where they are equal."""

from collections.abc import Sequence

ImageSize = int | tuple[int, int]
"""Height and width; one number for a square."""


def is_size(value: object) -> bool:
    """Return whether a value is an :data:`ImageSize`: an int above 0, or a tuple or list of two."""
    sides = value if isinstance(value, tuple | list) and len(value) == 2 else [value]
    return all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)


def get_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def shorten_size(size: int | Sequence[int]) -> ImageSize:
    """Return a size in its short form: one number for a square."""
    height, width = get_sides(size)
    return height if height == width else (height, width)


def format_size(size: int | Sequence[int]) -> str:
    """Return ``height x width`` as messages have it, such as ``24x32``."""
    return "x".join(map(str, get_sides(size)))


def write_size(size: int | Sequence[int]) -> str:
    """Return a size as a config has it, such as ``32`` or ``[24, 32]``."""
    short = shorten_size(size)
    return str(short if isinstance(short, int) else list(short))


def pad_size(size: int | Sequence[int], multiple: int) -> tuple[int, int]:
    """Return height and width, each rounded up to a multiple."""
    height, width = get_sides(size)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
