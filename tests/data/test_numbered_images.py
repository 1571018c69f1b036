"""The files of a set of images: written by several threads, each whole, failures reported as they are."""

import errno
from pathlib import Path
from threading import Barrier
from typing import BinaryIO

import pytest
import torch
from torch import Tensor

from lightning_ddpm.data import numbered_images
from lightning_ddpm.data.image_io import read_image, save_image
from lightning_ddpm.data.numbered_images import get_image_path, write_images

PIXELS = torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).reshape(6, 3, 4, 4)


def test_images_are_compressed_at_a_time_and_stand_under_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Barrier(len(PIXELS), timeout=60)  # passed only when all images are being written at once

    def save(pixels: Tensor, file: BinaryIO) -> None:
        together.wait()
        save_image(pixels, file)

    monkeypatch.setattr(numbered_images, "save_image", save)
    write_images(tmp_path / "set", 7, PIXELS)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [f"{i:06d}.png" for i in range(7, 13)]
    assert all(
        torch.equal(read_image(get_image_path(tmp_path / "set", 7 + i), 3, 4).pixels, PIXELS[i]) for i in range(6)
    )


def test_the_first_failure_is_raised_as_it_is_when_no_thread_writes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {2: OSError(errno.ENOSPC, "full"), 4: OSError(errno.EIO, "broken")}

    def save(pixels: Tensor, file: BinaryIO) -> None:
        index = next(i for i in range(6) if torch.equal(pixels, PIXELS[i]))
        if index in failures:
            raise failures[index]
        save_image(pixels, file)

    monkeypatch.setattr(numbered_images, "save_image", save)
    with pytest.raises(OSError, match="full") as error:
        write_images(tmp_path, 0, PIXELS)
    assert error.value is failures[2]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert set(files) <= {f"{i:06d}.png" for i in (0, 1, 3, 5)}, "no partial or temporary file is left"
