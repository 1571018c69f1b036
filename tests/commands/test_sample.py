"""``sample`` by its command line: the grid of its images, and clipping; test_sample_resume.py tests its folder."""

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
from lightning_ddpm.diffusion import DDIM, ClassifierFree, QuantileThreshold
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest

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


def test_a_threshold_changes_how_predictions_are_clipped_and_belongs_to_the_set(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    where = ("sample", "--ckpt", CONDITIONAL, "--out", tmp_path, "--accelerator", "cpu", "--n", 4, "--steps", 2)
    guided = ("--class", "3", "--guidance", "4")
    status, out, err = command(*where, *guided, "--threshold", "0.8")
    assert status == 0, err
    assert "clipping QuantileThreshold(quantile=0.8)" in out
    model = load(CONDITIONAL, DDPM)
    request = SampleRequest(4, sampler=DDIM(2), guidance=ClassifierFree(4.0), labels=[3])
    with torch.no_grad():
        clipped = model.generate(request, 0, 4)
        model.set_clipping(QuantileThreshold(0.8))
        thresholded = model.generate(request, 0, 4)
    written = torch.stack([read_pixels(tmp_path / f"{index:06d}.png") for index in range(4)])
    assert (written.int() - thresholded.int()).abs().max() <= 1
    assert (written.int() - clipped.int()).abs().max() > 20
    status, _, err = command(*where, *guided)
    assert status == 2
    assert "their clipping is QuantileThreshold(quantile=0.8), requested is None" in err
    status, _, err = command(*where, *guided, "--threshold", "99.5")
    assert status == 2
    assert "above 0 and at most 1, got 99.5" in err
