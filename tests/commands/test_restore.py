"""``restore`` by the command line, on the model that ships."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import read_image, save_image

PRETRAINED = "checkpoints/pretrained/digits.ckpt"
N = 6


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real digits."""
    folder = tmp_path_factory.mktemp("digits")
    for index, each in enumerate(Digits().open(Path(), "test").__getitems__(range(N))[0]):
        save_image(each, folder / f"{index}.png")
    return folder


@pytest.fixture
def restore(command: Any, tmp_path: Path) -> Any:
    """Runs it into tmp_path / out: (status, output, errors)."""

    def run(task: str, images: Path, *options: object) -> tuple[int, str, str]:
        words = ("restore", "--task", task, "--ckpt", PRETRAINED, "--images", images, "--out", tmp_path / "out")
        result: tuple[int, str, str] = command(*words, "--accelerator", "cpu", *options)
        return result

    return run


def pixels(folder: Path, names: list[str] | None = None) -> np.ndarray[Any, Any]:
    names = names or [f"{index:06d}.png" for index in range(N)]
    return np.stack([np.asarray(Image.open(folder / name)) for name in names]).astype(int)


def originals(folder: Path) -> np.ndarray[Any, Any]:
    return pixels(folder, [f"{index}.png" for index in range(N)])


def test_a_box_is_filled_in_and_the_rest_kept(restore, digits, tmp_path) -> None:
    options = ("--box", 0, 4, 8, 8, "--steps", 8, "--passes", 2, "--jump", 4, "--degrade")
    status, out, err = restore("inpaint", digits, *options)
    assert status == 0, err
    assert "wrote 6 images and side_by_side.png" in out
    assert ": 16 network evaluations each" in out
    made, real = pixels(tmp_path / "out"), originals(digits)
    assert (made[:, :4] == real[:, :4]).all()
    assert (made[:, 4:] != real[:, 4:]).any()
    with Image.open(tmp_path / "out" / "side_by_side.png") as picture:
        assert picture.size == (3 * 50 + 2, N * 50 + 2)  # given, made, original


def test_a_mask_is_a_picture_white_where_it_is_to_be_filled(restore, digits, tmp_path) -> None:
    hole = torch.zeros(1, 8, 8, dtype=torch.uint8)
    hole[:, 4:] = 255
    save_image(hole, tmp_path / "mask.png")
    status, _, err = restore("inpaint", digits, "--mask", tmp_path / "mask.png", "--steps", 4, "--passes", 1)
    assert status == 0, err
    assert (pixels(tmp_path / "out")[:, :4] == originals(digits)[:, :4]).all()
    assert not (tmp_path / "out" / "figures.json").exists()


@pytest.mark.parametrize(("task", "options"), [("superres", ("--factor", 2)), ("denoise", ("--sigma", 0.5))])
def test_what_is_degraded_comes_back_nearer(restore, digits, tmp_path, task, options) -> None:
    status, out, err = restore(task, digits, *options, "--degrade")
    assert status == 0, err
    assert ": 20 network evaluations each" in out
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    mean = figures["mean"]
    assert f"restored   {mean['psnr']:9.2f}" in out
    assert mean["psnr"] > mean["psnr_given"] + 0.5  # dB
    made, real = pixels(tmp_path / "out"), originals(digits)
    error = ((made - real) ** 2).mean((1, 2))
    assert [each["psnr"] for each in figures["images"]] == pytest.approx(10 * np.log10(255**2 / error), rel=1e-6)


def test_small_pictures_are_enlarged(restore, digits, tmp_path) -> None:
    (tmp_path / "small").mkdir()
    for path in digits.iterdir():
        small = read_image(path, 1, 8).pixels.float().reshape(1, 4, 2, 4, 2).mean((2, 4))
        save_image(small.round().to(torch.uint8), tmp_path / "small" / path.name)
    status, _, err = restore("superres", tmp_path / "small", "--factor", 2)
    assert status == 0, err
    made = pixels(tmp_path / "out")
    blocks = made.reshape(N, 4, 2, 4, 2).mean((2, 4))
    small = pixels(tmp_path / "small", [f"{index}.png" for index in range(N)])
    assert np.abs(blocks - small).max() < 16  # kept exactly, but pixels are then cut off at black and white


def test_a_variation_of_no_strength_is_the_picture(restore, digits, tmp_path) -> None:
    assert restore("vary", digits, "--strength", 0)[0] == 0
    assert (pixels(tmp_path / "out") == originals(digits)).all()


def test_the_batch_size_changes_rounding_only(restore, digits, tmp_path) -> None:
    made = []
    for size in (6, 4):
        assert restore("vary", digits, "--strength", 0.5, "--steps", 10, "--batch_size", size)[0] == 0
        made.append(pixels(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / str(size))
    assert np.abs(made[0] - made[1]).max() <= 1


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("blur", (), "there is no task 'blur'; there are inpaint, superres, denoise, colour, vary"),
        ("inpaint", (), "inpaint needs --mask FILE or --box LEFT TOP RIGHT BOTTOM, one of them"),
        ("inpaint", ("--box", 0, 0, 9, 4), "the box must lie in the picture of 8x8, got 0 0 9 4"),
        ("inpaint", ("--box", 0, 0, 8, 8), "the mask leaves no pixel known"),
        ("inpaint", ("--mask", "MASK"), "is 10x10 and the model's images are 8x8; resize it"),
        ("inpaint", ("--mask", "/nowhere.png"), "/nowhere.png: "),
        ("inpaint", ("--box", 0, 0, 4, 4, "--passes", 0), "--passes must be at least 1, got 0"),
        ("inpaint", ("--box", 0, 0, 4, 4, "--sampler", "AdaptiveODE"), "goes back and forth, which AdaptiveODE cannot"),
        ("superres", (), "superres needs --factor"),
        ("superres", ("--factor", 3), "8x8 cannot be divided into blocks of 3x3"),
        ("superres", ("--factor", 2), "are 8x8 and superres takes 4x4 here"),
        ("superres", ("--factor", 2, "--sampler", "DDIM"), "done by DDRM, which is a sampler of its own"),
        ("denoise", ("--sigma", -1), "at least 0 and finite, got sigma=-1"),
        ("colour", ("--degrade",), "images of one channel are already grayscale"),
        ("vary", ("--strength", 2), "lies in [0, 1], got 2"),
        ("vary", ("--strength", 0.5, "--sigma", 0.1), "--sigma is of superres, denoise, colour, and the task is vary"),
        ("vary", ("--strength", 0.5, "--label", 3), "was trained without classes"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(restore, digits, tmp_path, task, options, said) -> None:
    save_image(torch.zeros(1, 10, 10, dtype=torch.uint8), tmp_path / "mask.png")
    status, _, err = restore(task, digits, *(tmp_path / "mask.png" if each == "MASK" else each for each in options))
    assert status == 2
    assert said in err
    assert not list(tmp_path.glob("out/*.png"))


def test_images_are_not_written_over(restore, digits, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").touch()
    status, _, err = restore("vary", digits, "--strength", 0.5)
    assert status == 2
    assert f"{tmp_path / 'out'} holds images already" in err
