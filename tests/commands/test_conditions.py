"""Vectors, several classes and images as conditions by the command line: fit, sample, evaluate, restore, predict."""

import json

import numpy as np
import pytest
import torch
from helpers.blobs import EMBEDDINGS, describe, pair, small_config, write_blobs
from helpers.command_line import REPOSITORY, read_yaml, write_yaml
from helpers.command_outputs import get_error_sentence
from helpers.conditions import make_network
from helpers.tiny import tiny_model
from jsonargparse import Namespace
from PIL import Image

from lightning_ddpm.commands.condition_files import read_condition_files
from lightning_ddpm.diffusion import ClassifierFree
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.checkpoint_guidance import Autoguidance
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError

CPU = ("--accelerator", "cpu", "--steps", 2)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("blobs"))


@pytest.mark.slow  # a dozen commands
def test_a_model_of_a_table_is_trained_and_sampled_by_the_names_of_its_columns(command, blobs, tmp_path):
    run = tmp_path / "run"
    config = small_config(run, EMBEDDINGS, *describe(blobs), classes=None)
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    assert (run / "samples" / "step-0000002.png").is_file()
    ckpt, table = run / "last.ckpt", tmp_path / "wanted.csv"
    table.write_text(
        "odd,level,class,column,bright,comment\n0,200,left,2,1,a\n1,120.5,right,5,0,b\n1,120.5,left,5,0,c\n"
    )
    words = ("sample", "--ckpt", ckpt, *CPU, "--condition", table)
    status, out, err = command(*words, "--out", tmp_path / "samples")
    assert status == 0, err
    assert "wrote 3 images" in out
    model = load(ckpt)
    condition = Condition(
        torch.tensor([0, 1, 0]),
        torch.tensor([[1, 0], [0, 1], [0, 1]], dtype=torch.uint8),
        torch.tensor([[2, 200], [5, 120.5], [5, 120.5]]),
    )
    model.sampler = model.sampler.__class__(2)
    with torch.no_grad():
        expected = model.generate(SampleRequest(3, conditions=lambda start, stop: condition), 0, 3)
    written = [np.asarray(Image.open(tmp_path / "samples" / f"{index:06d}.png")) for index in range(3)]
    assert np.array_equal(expected[:, 0], np.stack(written))
    table.write_text(table.read_text().replace("200", "201"))
    status, _, err = command(*words, "--out", tmp_path / "samples")
    assert "condition" in get_error_sentence(status, err), "the folder holds images of another table"
    for option, message in (
        (("--condition_images", blobs), "was trained without images as a condition"),
        ((), "conditioned on the vector (column, level) and several of the classes (bright, odd): give --condition"),
    ):
        status, _, err = command(*words[:3], *CPU, *option, "--out", tmp_path / "others")
        assert message in get_error_sentence(status, err)
    for old, new, message in (
        ("level", "height", "has no column 'level'; it has odd, height, class, column, bright, comment"),
        ("120.5,right", "nan,right", "row 2 of"),
        ("right", "middle", "has 'middle' in the column class, which holds names of classes: left, right"),
    ):
        (tmp_path / "wrong.csv").write_text(table.read_text().replace(old, new))
        status, _, err = command(*words[:-1], tmp_path / "wrong.csv", "--out", tmp_path / "others")
        assert message in get_error_sentence(status, err)
    unconditional = ("sample", "--ckpt", ckpt, *CPU, "--guidance", 0, "--n", 2, "--out", tmp_path / "unconditional")
    status, _, err = command(*unconditional)
    assert status == 0, err
    status, _, err = command(
        *("evaluate", "--ckpt", ckpt, *CPU, "--n", 70, "--extractor", "DigitsFeatures", "--metrics", "fid", "bpd"),
        *("--out", tmp_path / "result.json"),
    )
    assert status == 0, err
    assert json.loads((tmp_path / "result.json").read_text())["images"]["condition"] == "of held-out images"
    status, _, err = command("export", "--ckpt", ckpt, "--format", "diffusers", "--out", tmp_path / "exported")
    assert "this network has VectorEmbedding, MultiLabelEmbedding; it cannot be exported" in get_error_sentence(
        status, err
    )


def test_a_model_of_pairs_is_trained_and_measured_and_enlarges_a_folder(command, blobs, tmp_path):
    run, config = tmp_path / "run", read_yaml(REPOSITORY / "configs" / "superresolution.yaml")
    conditions = config["model"]["init_args"]["network"]["init_args"]["conditions"]
    pairs = small_config(run, conditions, *pair(blobs))
    quality = {"n": 6, "shown": 3, "every_n_steps": 2, "sampler": {"class_path": "DDIM", "init_args": {"steps": 2}}}
    pairs["trainer"]["callbacks"].append({"class_path": "lightning_ddpm.callbacks.PairQuality", "init_args": quality})
    status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", pairs))
    assert status == 0, err
    assert "step 2: val/psnr" in out
    assert (run / "samples" / "pairs-0000002.png").is_file()
    images = blobs / "input" / "left"
    words = ("sample", "--ckpt", run / "last.ckpt", *CPU, "--out", tmp_path / "enlarged")
    status, out, err = command(*words, "--condition_images", images)
    assert status == 0, err
    n = len(list(images.iterdir()))
    assert len(list((tmp_path / "enlarged").glob("0*.png"))) == n
    with Image.open(tmp_path / "enlarged" / "grid.png") as grid:
        assert grid.mode == "RGB"
    for option, message in (
        ((), "the model is conditioned on an image of 1x4x4: give --condition_images DIR"),
        (("--condition_images", blobs / "target"), "are 1x8x8 and the model is conditioned on 1x4x4; resize them"),
        (("--condition_images", tmp_path / "none"), "there is no folder"),
        (("--condition", blobs / "target" / "conditions.csv"), "has no column that the model is conditioned on"),
    ):
        status, _, err = command(*words[:-1], tmp_path / "others", *option)
        assert message in get_error_sentence(status, err)
    status, _, err = command(
        *("restore", "--ckpt", run / "last.ckpt", "--task", "superres", "--factor", 2, "--images", images),
        *("--out", tmp_path / "restored"),
    )
    assert "generates images from images; use sample --condition_images DIR" in get_error_sentence(status, err)
    status, _, err = command("predict", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    assert status == 0, err


def test_data_without_the_condition_of_the_network_are_refused_before_training(command, blobs, tmp_path):
    source, root = describe(blobs)
    missing = {"class_path": "lightning_ddpm.networks.ConcatenatedImage"}
    config = small_config(tmp_path / "run", [missing], source, root)
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    expected = "ConcatenatedImage needs an image that each image is conditioned on, and the data have none"
    assert expected in get_error_sentence(status, err)
    named = {"class_path": "lightning_ddpm.networks.VectorEmbedding", "init_args": {"names": ["column"]}}
    config = small_config(tmp_path / "run", [named], source, root)
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    message = get_error_sentence(status, err)
    assert "the data has names=['column', 'level'] and model.network.conditions[0] has names=['column']" in message


def test_guidance_of_scale_0_needs_no_condition_and_a_weaker_model_at_scale_0_does(tmp_path):
    """Autoguidance of scale 0 is the weaker model, which is given the condition."""
    model = tiny_model(network=make_network("UNet"))
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    options = Namespace(ckpt="any.ckpt", condition=None, condition_images=tmp_path, guidance=0.0)
    given = read_condition_files(options, model, ClassifierFree(0.0))
    assert given is not None
    assert given.n == 1
    for guidance in (Autoguidance("weaker.ckpt", 0.0), ClassifierFree(0.0, (1, 5)), None):
        with pytest.raises(UserError, match=r"conditioned on the vector .*; add --condition FILE\.csv"):
            read_condition_files(options, model, guidance)
