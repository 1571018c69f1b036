"""``restore`` by the command line, on the model that ships."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.commands import restore as restore_command
from lightning_ddpm.commands.restore import _report_metrics
from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import TITLE_HEIGHT, read_image, save_image

PRETRAINED = "checkpoints/pretrained/digits.ckpt"
N = 6


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of six real digits."""
    folder = tmp_path_factory.mktemp("digits")
    for index, each in enumerate(Digits().open(Path(), "test").__getitems__(range(N))[0]):
        save_image(each, folder / f"{index}.png")
    return folder


@pytest.fixture
def restore(command: Any, tmp_path: Path) -> Any:
    """Return a function that runs it into tmp_path / out and returns (status, output, errors)."""

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


def test_inpainting_fills_a_box_and_keeps_the_other_pixels(restore, digits, tmp_path) -> None:
    options = ("--box", 0, 4, 8, 8, "--steps", 8, "--passes", 2, "--degrade")
    status, out, err = restore("inpaint", digits, *options)
    assert status == 0, err
    assert "wrote 6 images and side_by_side.png" in out
    assert ": 16 network evaluations each" in out
    restored, real = pixels(tmp_path / "out"), originals(digits)
    assert (restored[:, :4] == real[:, :4]).all()
    assert (restored[:, 4:] != real[:, 4:]).any()
    with Image.open(tmp_path / "out" / "side_by_side.png") as grid:
        assert grid.size == (3 * 50 + 2, TITLE_HEIGHT + N * 50 + 2)  # given, restored, original


def test_inpainting_fills_the_white_pixels_of_a_mask(restore, digits, tmp_path) -> None:
    hole = torch.zeros(1, 8, 8, dtype=torch.uint8)
    hole[:, 4:] = 255
    save_image(hole, tmp_path / "mask.png")
    status, _, err = restore("inpaint", digits, "--mask", tmp_path / "mask.png", "--steps", 4, "--passes", 1)
    assert status == 0, err
    assert (pixels(tmp_path / "out")[:, :4] == originals(digits)[:, :4]).all()
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(("task", "options"), [("superres", ("--factor", 2)), ("denoise", ("--sigma", 0.5))])
def test_restored_images_are_nearer_to_the_originals_than_given_ones(restore, digits, tmp_path, task, options) -> None:
    status, out, err = restore(task, digits, *options, "--degrade")
    assert status == 0, err
    assert ": 20 network evaluations each" in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    mean = metrics["mean"]
    assert f"restored   {mean['psnr']:9.2f}" in out
    assert mean["psnr"] > mean["psnr_given"] + 0.5  # dB
    restored, real = pixels(tmp_path / "out"), originals(digits)
    error = ((restored - real) ** 2).mean((1, 2))
    assert [each["psnr"] for each in metrics["images"]] == pytest.approx(10 * np.log10(255**2 / error), rel=1e-6)


def test_small_images_are_enlarged(restore, digits, tmp_path) -> None:
    (tmp_path / "small").mkdir()
    for path in digits.iterdir():
        small = read_image(path, 1, 8).pixels.float().reshape(1, 4, 2, 4, 2).mean((2, 4))
        save_image(small.round().to(torch.uint8), tmp_path / "small" / path.name)
    status, _, err = restore("superres", tmp_path / "small", "--factor", 2)
    assert status == 0, err
    restored = pixels(tmp_path / "out")
    blocks = restored.reshape(N, 4, 2, 4, 2).mean((2, 4))
    small = pixels(tmp_path / "small", [f"{index}.png" for index in range(N)])
    assert np.abs(blocks - small).max() < 16  # means are kept exactly before pixels are clipped to black and white


def test_sdedit_of_strength_zero_returns_the_image(restore, digits, tmp_path) -> None:
    assert restore("sdedit", digits, "--strength", 0)[0] == 0
    assert (pixels(tmp_path / "out") == originals(digits)).all()


def test_batch_size_changes_only_rounding(restore, digits, tmp_path) -> None:
    restored = []
    for size in (6, 4):
        assert restore("sdedit", digits, "--strength", 0.5, "--steps", 10, "--batch_size", size)[0] == 0
        restored.append(pixels(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / str(size))
    assert np.abs(restored[0] - restored[1]).max() <= 1


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("blur", (), "there is no task 'blur'; there are inpaint, superres, denoise, colorize, sdedit"),
        ("inpaint", (), "inpaint needs either --mask FILE or --box LEFT TOP RIGHT BOTTOM"),
        ("inpaint", ("--box", 0, 0, 9, 4), "the box must lie in the image of 8x8, got 0 0 9 4"),
        ("inpaint", ("--box", 0, 0, 8, 8), "the mask leaves no pixel known"),
        ("inpaint", ("--mask", "MASK"), "is 10x10 and the model's images are 8x8; resize it"),
        ("inpaint", ("--mask", "/nowhere.png"), "/nowhere.png: "),
        ("inpaint", ("--box", 0, 0, 4, 4, "--passes", 0), "--passes must be at least 1, got 0"),
        (
            "inpaint",
            ("--box", 0, 0, 4, 4, "--sampler", "AdaptiveODE"),
            "a sampler that takes single steps, got AdaptiveODE",
        ),
        ("superres", (), "superres needs --factor"),
        ("superres", ("--factor", 3), "8x8 cannot be divided into blocks of 3x3"),
        ("superres", ("--factor", 2), "are 8x8 and superres takes 4x4 here"),
        ("superres", ("--factor", 2, "--sampler", "DDIM"), "superres always uses DDRM; leave --sampler out"),
        ("denoise", ("--sigma", -1), "at least 0 and finite, got sigma=-1"),
        ("colorize", ("--degrade",), "images of one channel are already grayscale"),
        ("sdedit", ("--strength", 2), "must lie in [0, 1], got 2"),
        (
            "sdedit",
            ("--strength", 0.5, "--sigma", 0.1),
            "--sigma is an option of superres, denoise, colorize, and",
        ),
        ("sdedit", ("--strength", 0.5, "--sigma", 0), "--sigma is an option of superres, denoise, colorize, and"),
        ("sdedit", ("--strength", 0.5, "--label", 3), "was trained without classes"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(restore, digits, tmp_path, task, options, message) -> None:
    save_image(torch.zeros(1, 10, 10, dtype=torch.uint8), tmp_path / "mask.png")
    status, _, err = restore(task, digits, *(tmp_path / "mask.png" if each == "MASK" else each for each in options))
    assert status == 2
    assert message in err
    assert not list(tmp_path.glob("out/*.png"))


def test_existing_images_are_not_overwritten(restore, digits, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").touch()
    status, _, err = restore("sdedit", digits, "--strength", 0.5)
    assert status == 2
    assert f"{tmp_path / 'out'} holds images already" in err


def test_a_restore_that_was_killed_starts_again_and_a_finished_one_does_not(
    restore, digits, tmp_path, monkeypatch
) -> None:
    options = ("--sigma", 0.2, "--degrade", "--steps", 2, "--batch_size", 2)
    write, written = restore_command.write_images, []

    def write_two_batches(folder: Path, start: int, images: torch.Tensor) -> None:
        if len(written) == 2:
            raise SystemExit(137)
        written.append(start)
        write(folder, start, images)

    with monkeypatch.context() as patch:
        patch.setattr(restore_command, "write_images", write_two_batches)
        assert restore("denoise", digits, *options)[0] == 137
    (tmp_path / "out" / "000099.png").write_bytes(b"of a larger set")
    assert len([*(tmp_path / "out").glob("*.png")]) == 5
    status, out, err = restore("denoise", digits, *options)
    assert status == 0, err
    assert f"the restore in {tmp_path / 'out'} was interrupted; it starts again" in out
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len([name for name in first if name.endswith(".png")]) == N + 1
    assert restore("denoise", digits, *options)[0] == 2
    (tmp_path / "out").rename(tmp_path / "before")
    assert restore("denoise", digits, *options)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


def test_the_images_of_an_interrupted_sample_are_not_deleted(restore, command, digits, tmp_path) -> None:
    status, _, err = command("sample", "--ckpt", PRETRAINED, "--n", 2, "--steps", 2, "--out", tmp_path / "out")
    assert status == 0, err
    (tmp_path / "out" / "grid.png").unlink()
    status, _, err = restore("denoise", digits, "--sigma", 0.2)
    assert status == 2
    assert f"{tmp_path / 'out'} holds images already" in err
    assert (tmp_path / "out" / "000001.png").is_file()


def test_images_that_are_restored_exactly_are_counted_and_json_has_no_infinity(command, digits, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ("--task", "denoise", "--sigma", "0", "--steps", "2", "--degrade", "--accelerator", "cpu")
    status, printed, err = command("restore", "--ckpt", PRETRAINED, "--images", digits, "--out", out, *arguments)
    assert status == 0, err
    text = (out / "metrics.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["exact"] == {"psnr": N, "psnr_given": N}
    assert found["mean"]["psnr"] is None
    assert [each["psnr_given"] for each in found["images"]] == [None] * N
    assert f"restored       exact  1.0000  PSNR without {N} of {N} images, which are exact" in printed


def test_the_mean_psnr_is_over_the_images_that_are_not_exact(tmp_path, capsys) -> None:
    rows = torch.tensor([[math.inf, 1, 10, 0.5], [20, 0.8, 20, 0.7], [40, 0.9, 30, 0.9]], dtype=torch.float64)
    _report_metrics(rows, tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["mean"] == pytest.approx({"psnr": 30, "ssim": 0.9, "psnr_given": 20, "ssim_given": 0.7})
    assert found["exact"] == {"psnr": 1, "psnr_given": 0}
    assert found["images"][0]["psnr"] is None
    assert "restored       30.00  0.9000  PSNR without 1 of 3 images, which are exact" in capsys.readouterr().out
