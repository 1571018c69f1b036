"""The images that ``sample`` writes."""

import re

import numpy as np
import pytest
import torch
from helpers.command_outputs import read_images, read_pixels, run_on_terminal
from PIL import Image

from lightning_ddpm.data.image_io import arrange_grid, to_uint8
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.random import ImageNoise


@pytest.fixture(scope="module")
def sampled(digits_run, tmp_path_factory):
    """Five images sampled by a process on a terminal, with the trajectory: (folder, terminal output)."""
    folder = tmp_path_factory.mktemp("sampled")
    weights = digits_run.folder / "last.ckpt"
    animation = folder / "animation" / "out.gif"
    status, shown = run_on_terminal(
        *("sample", "--ckpt", weights, "--n", "5", "--batch_size", "5", "--out", folder, "--trajectory", animation)
    )
    assert status == 0, shown
    return folder, shown


def test_sample_writes_numbered_images_and_a_grid_of_them(sampled):
    folder, _ = sampled
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == [*(f"{index:06d}.png" for index in range(5)), "grid.png"]
    pixels = torch.from_numpy(read_images(folder, 5)).to(torch.uint8)[:, None]
    assert pixels.shape == (5, 1, 8, 8)
    assert (read_pixels(folder / "grid.png") == arrange_grid(pixels).permute(1, 2, 0).numpy()).all()


def test_sample_uses_the_averaged_weights_and_the_checkpoints_own_sampler(sampled, digits_run):
    model = load(digits_run.folder / "last.ckpt", DDPM)
    noise = ImageNoise(0, 0, 5)
    with torch.no_grad():
        x_0 = model.sampler.sample(model.denoiser, noise(torch.empty(5, 1, 8, 8)), noise)
    assert np.abs(to_uint8(x_0)[:, 0].numpy().astype(int) - read_images(sampled[0], 5)).max() <= 1


def test_sample_on_a_terminal_shows_a_bar_with_its_speed(sampled):
    _, shown = sampled
    assert "━" in shown
    assert "5/5" in shown
    assert "images/s" in shown


def test_the_trajectory_is_an_animation_from_noise_to_the_images(sampled):
    folder, _ = sampled
    with Image.open(folder / "animation" / "out.gif") as animation:
        frames = []
        for index in range(animation.n_frames):
            animation.seek(index)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert len(frames) == 6  # x_T and the result of each of five steps
    assert np.abs(frames[-1] - read_pixels(folder / "grid.png")).max() <= 1
    noise = ImageNoise(0, 0, 5)(torch.empty(5, 1, 8, 8))
    assert np.abs(frames[0] - arrange_grid(to_uint8(noise)).permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_sampled_images_do_not_depend_on_the_batch_size(sampled, digits_run, command, tmp_path):
    status, _, err = command(
        *("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "5", "--batch_size", "2", "--out", tmp_path)
    )
    assert status == 0, err
    assert np.abs(read_images(tmp_path, 5) - read_images(sampled[0], 5)).max() <= 1


@pytest.mark.parametrize("option", [("--seed", "1"), ("--raw",), ("--steps", "3")], ids=lambda option: option[0])
def test_another_seed_raw_weights_and_fewer_steps_change_the_images(option, sampled, digits_run, command, tmp_path):
    status, out, err = command(
        *("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "5", "--out", tmp_path, *option)
    )
    assert status == 0, err
    assert np.abs(read_images(tmp_path, 5) - read_images(sampled[0], 5)).max() > 1
    assert f"{3 if option[0] == '--steps' else 5} network evaluations each" in out
    assert ("raw weights" if option[0] == "--raw" else "EMA weights") in out


@pytest.mark.parametrize(
    ("options", "announced", "evaluations"),
    [
        (("--sampler", "Heun", "--steps", "3"), "Heun(steps=3", "5"),
        (("--sampler", "DPMSolverPP", "--sampler.steps", "4", "--sampler.eta", "1"), "DPMSolverPP(steps=4, eta=1", "4"),
        (("--sampler", "Ancestral", "--sampler.variance", "FixedSmall"), "Ancestral(variance=FixedSmall", "20"),
        (("--sampler", "AdaptiveODE", "--sampler.tolerance", "0.1"), "an adaptive number of network evaluations", None),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_any_sampler_can_be_named_and_its_network_evaluations_are_counted(
    options, announced, evaluations, sampled, digits_run, command, tmp_path
):
    status, out, err = command(
        *("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "5", "--out", tmp_path, *options)
    )
    assert status == 0, err
    assert announced in out
    counted = re.search(r"grid.png in .*: (\d+) network evaluations each", out)[1]
    assert counted == evaluations if evaluations else int(counted) >= 7
    assert np.abs(read_images(tmp_path, 5) - read_images(sampled[0], 5)).max() > 1
