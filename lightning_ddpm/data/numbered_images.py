"""The image files of a set: 000000.png, 000001.png, ..."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from torch import Tensor

from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.utils.files import write_atomically

NUMBERED = "[0-9]" * 6 + ".png"
THREADS = 8
"""Images that are compressed at a time: one thread would let a GPU wait for large ones."""


def get_image_path(folder: Path, index: int) -> Path:
    """Return the path of an image."""
    return folder / f"{index:06d}.png"


def write_images(folder: Path, start: int, pixels: Tensor) -> None:
    """Write images start, start + 1, ..., (b, c, h, w) uint8.

    Each is whole or absent for a process that reads the folder. They are on the disk once
    :func:`lightning_ddpm.utils.files.flush_files` returns.

    Raises:
        OSError: an image cannot be written; of several failures, that of the lowest index.
    """

    def write(index: int, image: Tensor) -> None:
        write_atomically(get_image_path(folder, index), partial(save_image, image), flush=False)

    with ThreadPoolExecutor(min(len(pixels), THREADS)) as threads:
        list(threads.map(write, range(start, start + len(pixels)), pixels.cpu()))
