"""Images whose height and width differ, from training to restoration, by the command line."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from helpers.command_line import callback, read_yaml, tiny_digits, write_yaml
from helpers.command_outputs import read_images, read_losses
from helpers.tiny import TINY, real_data
from PIL import Image
from sklearn.datasets import load_sample_image

from lightning_ddpm.data.image_io import arrange_grid, read_image
from lightning_ddpm.interop.diffusers.unet import make_unet_config, parse_unet_config
from lightning_ddpm.interop.diffusers.weights import export_weights
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet

HEIGHT, WIDTH = 12, 16


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a folder of 60 crops of a photograph, 16 pixels wide and 12 high."""
    folder, photograph = tmp_path_factory.mktemp("crops"), load_sample_image("china.jpg")
    for index in range(60):
        top, left = 6 * index, 9 * index
        Image.fromarray(photograph[top : top + HEIGHT, left : left + WIDTH]).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def config(photographs, tmp_path_factory):
    """Return a config of four steps on them, padded to 16x16 inside a network that halves them three times."""
    config = tiny_digits(tmp_path_factory.mktemp("run"))
    keep = "EMA", "SampleGrid", "Checkpoints"
    config["trainer"]["callbacks"] = [
        each for each in config["trainer"]["callbacks"] if each["class_path"].endswith(keep)
    ]
    callback(config, "Checkpoints").pop("monitor", None)
    config["model"]["init_args"]["network"]["init_args"].update(
        multipliers=[1, 1, 1, 1], attention=[4], blocks=1, pad_to_multiple=8
    )
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"size": [HEIGHT, WIDTH], "holdout": 0.1}}
    config["data"].update(source=source, root=str(photographs), flip=True)
    return config


def read_size(path):
    return read_image(path, 3, (HEIGHT, WIDTH)).size


@pytest.mark.slow  # seven commands
def test_a_model_of_rectangles_is_trained_resumed_sampled_evaluated_and_restores(
    command, config, photographs, tmp_path
) -> None:
    config, run = copy.deepcopy(config), tmp_path / "run"
    config["trainer"]["default_root_dir"] = str(run)

    def succeed(*words):
        status, out, err = command(*words, "--accelerator", "cpu") if words[0] != "fit" else command(*words)
        assert status == 0, err
        return out

    out = succeed("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert f"of 3x{HEIGHT}x{WIDTH}" in out
    written = read_yaml(run / "config.yaml")
    assert written["model"]["init_args"]["network"]["init_args"]["size"] == [HEIGHT, WIDTH]
    ckpt = run / "last.ckpt"
    model = load(ckpt, DDPM)
    assert model.image_shape == (3, HEIGHT, WIDTH)
    assert model.network(torch.zeros(2, *model.image_shape), torch.tensor([1, 2])).shape[-2:] == (HEIGHT, WIDTH)

    resumed = ("--ckpt_path", "last", "--trainer.max_steps", 6)
    assert "resuming after step 4" in succeed("fit", "--config", run / "config.yaml", *resumed)

    few = ("--n", 4, "--steps", 2, "--trajectory", tmp_path / "t.gif")
    succeed("sample", "--ckpt", ckpt, "--out", tmp_path / "samples", *few)
    assert read_size(tmp_path / "samples" / "000003.png") == (WIDTH, HEIGHT)
    succeed("evaluate", "--ckpt", ckpt, "--reference", run / "config.yaml", "--metrics", "bpd", "--n", 3)
    out = tmp_path / "restored"
    box = ("--box", 10, 0, 16, 12)  # beyond the height, within the width
    words = ("restore", "--ckpt", ckpt, "--images", photographs, "--degrade", "--steps", 2)
    succeed(*words, "--task", "inpaint", *box, "--passes", 1, "--out", out)
    restored, original = (
        read_image(path, 3, (HEIGHT, WIDTH)).pixels for path in (out / "000000.png", photographs / "00.png")
    )
    assert torch.equal(restored[..., :10], original[..., :10])
    succeed(*words, "--task", "superres", "--factor", 2, "--out", tmp_path / "enlarged")
    assert read_size(tmp_path / "enlarged" / "000000.png") == (WIDTH, HEIGHT)


@pytest.mark.slow  # three commands
def test_a_model_of_cifar10_cut_to_24x32_is_trained_sampled_and_evaluated(command, config, tmp_path) -> None:
    cut = tmp_path / "cut"
    for name in ("ship", "frog"):
        (cut / name).mkdir(parents=True)
        for path in sorted((real_data("cifar10") / "train" / name).glob("*.png"))[:40]:
            with Image.open(path) as image:
                image.crop((0, 4, 32, 28)).save(cut / name / path.name)
    config, run = copy.deepcopy(config), tmp_path / "run"
    config["trainer"].update(default_root_dir=str(run), max_steps=30, val_check_interval=30, limit_val_batches=1.0)
    callback(config, "Checkpoints").update(every_n_steps=30)
    callback(config, "SampleGrid").update(every_n_steps=30)
    config["model"]["init_args"]["network"]["init_args"].update(classes=None, attention=[3])
    config["data"]["source"]["init_args"]["size"] = [24, 32]
    config["data"]["root"] = str(cut)
    status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    assert "of 3x24x32" in out
    events = read_losses(run)
    assert np.mean([loss for _, loss in events[-6:]]) < 0.9 * np.mean([loss for _, loss in events[:3]])
    words = ("--ckpt", run / "last.ckpt", "--n", 6, "--steps", 5, "--accelerator", "cpu")
    status, _, err = command("sample", *words, "--out", tmp_path / "samples")
    assert status == 0, err
    images = read_images(tmp_path / "samples", 6)
    assert images.shape == (6, 24, 32, 3)
    assert images.std() > 10
    metrics = ("--metrics", "spectrum", "marginals", "--reference", run / "config.yaml")
    status, _, err = command("evaluate", *words, *metrics, "--out", tmp_path / "result.json")
    assert status == 0, err
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert {"spectrum_db", "wasserstein"} <= found.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pad_to_multiple": 1},
            "size must be a multiple of 8, because it is halved 3 times; got [12, 16]; try size=16",
        ),
        ({"size": [16, 12]}, "the data has size=[12, 16] and the network has size=[16, 12]"),
        ({"pad_to_multiple": 0}, "pad_to_multiple must be at least 1"),
        ({"attention": [16]}, None),
        ({"attention": [12]}, "attention is set for the sizes [12], but the levels have the sizes [16, 8, 4, 2]"),
    ],
)
def test_the_config_pads_a_size_that_cannot_be_halved_or_it_is_refused(
    command, config, tmp_path, change, message
) -> None:
    config = copy.deepcopy(config)
    config["trainer"].update(default_root_dir=str(tmp_path / "run"), max_steps=1, callbacks=[])
    config["model"]["init_args"]["network"]["init_args"].update(change)
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == (2 if message else 0), err
    assert not message or message in " ".join(err.split())


def test_an_image_is_resized_until_it_covers_height_and_width_and_cropped(tmp_path) -> None:
    column = np.linspace(0, 255, 40).round().astype(np.uint8)
    Image.fromarray(np.tile(column, (24, 1))).save(tmp_path / "wide.png")  # 40 wide, 24 high
    wide = read_image(tmp_path / "wide.png", 1, (12, 16)).pixels[0].float()
    assert wide.shape == (12, 16)  # halved to 20x12; two columns are cropped at each side
    expected = torch.tensor(column).float().reshape(20, 2).mean(1)[2:-2]
    assert (wide - expected).abs().max() <= 1
    tall = read_image(tmp_path / "wide.png", 1, (24, 10)).pixels[0]
    assert torch.equal(tall, torch.tensor(column)[15:25].expand(24, 10))  # no resize: one side fits


def test_small_images_are_enlarged_by_their_longer_side_in_grids() -> None:
    assert arrange_grid(torch.zeros(1, 1, 8, 24, dtype=torch.uint8)).shape[-2:] == (16, 48)


def test_an_exported_network_of_rectangles_computes_the_same_in_diffusers(tmp_path) -> None:
    network = UNet(**{**TINY, "size": (8, 12)}).eval()
    settings = make_unet_config(network)
    assert settings["sample_size"] == [8, 12]
    assert parse_unet_config(settings)["size"] == (8, 12)
    theirs = UNet2DModel.from_config(settings).eval()
    theirs.load_state_dict(export_weights(network))
    x, t = torch.randn(2, 1, 8, 12), torch.tensor([1, 5])
    torch.testing.assert_close(network(x, t), theirs(x, t - 1).sample)
