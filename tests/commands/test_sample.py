"""``sample`` by its command line: the grid of its images. Its folder is tested in test_sample_resume.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_ddpm.data.image_io import arrange_grid

CONDITIONAL = REPOSITORY / "checkpoints" / "pretrained" / "digits_conditional.ckpt"


def read_pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return pil_to_tensor(image)


@pytest.mark.parametrize(
    ("options", "n", "titles"),
    [
        (("--class", "3,7"), 5, ["3", "7"]),
        (("--label", "4,0,9"), 2, ["4", "0"]),
        (("--class", "3"), 5, None),
        ((), 5, None),
    ],
    ids=["two classes", "fewer images than classes", "one class", "no class requested"],
)
def test_requested_classes_head_the_columns_of_the_grid(
    options: tuple[str, ...], n: int, titles: list[str] | None, command: Callable[..., Any], tmp_path: Path
) -> None:
    where = ("--ckpt", CONDITIONAL, "--out", tmp_path, "--accelerator", "cpu")
    status, _, err = command("sample", *where, "--n", n, "--steps", 1, *options)
    assert status == 0, err
    pixels = torch.stack([read_pixels(tmp_path / f"{index:06d}.png") for index in range(n)])
    grid = arrange_grid(pixels, len(titles) if titles else None, titles)
    assert torch.equal(read_pixels(tmp_path / "grid.png"), grid)
