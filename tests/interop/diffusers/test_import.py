"""Models imported from diffusers generate the same images; a folder that is not supported is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from helpers.diffusers_models import (
    DIGITS,
    GOOGLE,
    GOOGLE_SCHEDULER,
    MODELS,
    WEIGHTS,
    T,
    assert_same_images,
    assert_same_samples,
    change_json,
    flatten_folder,
    import_pipeline,
    make_pipeline,
    sample_here,
    sample_in_diffusers,
    write_checkpoint,
)
from helpers.tiny import same, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
)
from lightning_ddpm.interop.diffusers.continuous import PIPELINES as PIPELINES_OF
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM

PIPELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as_googles": (GOOGLE, {}),
    "cosine": (DIGITS, {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small"}),
    "scaled_linear": (DIGITS, {"beta_schedule": "scaled_linear", "beta_end": 0.2}),
    "sigmoid": (DIGITS, {"beta_schedule": "sigmoid", "variance_type": "fixed_small_log"}),
    "sample": (DIGITS, {"prediction_type": "sample", "trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3}),
    "velocity": (DIGITS, {"prediction_type": "v_prediction"}),
    "learned": (DIGITS | {"out_channels": 2}, {"variance_type": "learned_range", "beta_end": 0.2}),
    "unclipped": (DIGITS, {"clip_sample": False, "prediction_type": "v_prediction", "beta_end": 0.2}),
    "one_head": (DIGITS | {"attention_head_dim": 16, "act_fn": "swish"}, {}),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_an_imported_model_generates_the_same_images(name, tmp_path, command, monkeypatch):
    pipe = make_pipeline(*PIPELINES[name])
    pipe.save_pretrained(tmp_path / "in")
    assert_same_samples(import_pipeline(tmp_path / "in", command), pipe, monkeypatch)


@pytest.mark.parametrize("file", [f"{WEIGHTS}.bin", f"{WEIGHTS}.safetensors"])
def test_a_model_without_subfolders_and_with_old_names_of_weights_generates_the_same_images(
    file, tmp_path, command, monkeypatch
):
    pipe = make_pipeline(GOOGLE)
    pipe.save_pretrained(tmp_path / "in")
    flatten_folder(tmp_path / "in", file)
    (tmp_path / "in" / "config.json").write_text(json.dumps(GOOGLE | {"_class_name": "UNet2DModel"}))
    chain = GOOGLE_SCHEDULER | {"_class_name": "DDPMScheduler"}
    (tmp_path / "in" / "scheduler_config.json").write_text(json.dumps(chain))
    assert_same_images(sample_here(import_pipeline(tmp_path / "in", command)), sample_in_diffusers(pipe, monkeypatch))


def test_an_imported_ddim_pipeline_makes_all_steps(tmp_path, command, monkeypatch):
    pipe = DDIMPipeline(make_pipeline(DIGITS).unet, DDIMScheduler(num_train_timesteps=T))
    pipe.save_pretrained(tmp_path / "in")
    model = import_pipeline(tmp_path / "in", command)
    assert isinstance(model.sampler, DDIM)
    assert_same_images(sample_here(model), sample_in_diffusers(pipe, monkeypatch, use_clipped_model_output=True))


@pytest.mark.parametrize("name", ["as_ho", "betas", "learned", "wide_colour"])
def test_a_round_trip_leaves_the_model_unchanged(name, tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt", **MODELS[name])
    command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    before, after = load(path, DDPM), import_pipeline(tmp_path / "out", command)
    assert same(weights(before), weights(after))
    assert str(before.network) == str(after.network)  # dropout included
    assert str(before.sampler) == str(after.sampler)
    assert type(before.schedule) is type(after.schedule)
    assert torch.equal(before.schedule.beta, after.schedule.beta)
    status, _, err = command(
        "export", "--ckpt", tmp_path / "imported.ckpt", "--format", "diffusers", "--out", tmp_path / "2"
    )
    assert status == 0, err
    for file in (f"unet/{WEIGHTS}.safetensors", "unet/config.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a saved pipeline."""
    make_pipeline(DIGITS).save_pretrained(tmp_path / "in")
    return tmp_path / "in"


UNSUPPORTED = [
    ("unet", "act_fn", "gelu", "'silu' and 'swish'"),
    ("unet", "freq_shift", 0, "0 where flip_sin_to_cos is true, 1 where it is false"),
    ("unet", "downsample_padding", 2, "0 and 1"),
    ("unet", "downsample_type", "fir", "'conv' and 'resnet'"),
    ("unet", "norm_eps", 2.0, "a number between 0 and 1"),
    ("unet", "center_input_sample", True, "False"),
    ("unet", "time_embedding_type", "fourier", "'positional'"),
    ("unet", "resnet_time_scale_shift", "spatial", "'default' and 'scale_shift'"),
    ("unet", "add_attention", False, "True"),
    ("unet", "mid_block_scale_factor", 2, "1"),
    ("unet", "num_class_embeds", "many", "an integer of at least 1"),
    ("unet", "class_embed_type", "timestep", "None"),
    (
        "unet",
        "down_block_types",
        ["DownBlock2D", "SkipDownBlock2D"],
        "DownBlock2D, AttnDownBlock2D, ResnetDownsampleBlock2D",
    ),
    ("unet", "up_block_types", ["UpBlock2D", "UpBlock2D"], "attention at the levels at which down_block_types has it"),
    ("unet", "up_block_types", ["AttnUpBlock2D", "SkipUpBlock2D"], "UpBlock2D, AttnUpBlock2D, ResnetUpsampleBlock2D"),
    ("unet", "attention_head_dim", 5, "null, or a divisor of all of [16] channels"),
    ("unet", "attn_norm_num_groups", 2, "null or norm_num_groups"),
    ("unet", "block_out_channels", [8, 12], "multiples of the first"),
    ("unet", "block_out_channels", 8, "a list"),
    ("unet", "sample_size", [8, 16, 3], "an integer above 0, or a list of height and width"),
    ("unet", "out_channels", 3, "1, or 2 with a learned variance"),
    ("unet", "time_embedding_dim", 64, "null or 32"),
    ("unet", "layers_per_block", None, "an integer of at least 1"),
    ("unet", "dropout", "much", "a number"),
    ("unet", "something_new", 7, "null"),
    ("unet", "_class_name", "UNet2DConditionModel", "UNet2DModel"),
    ("scheduler", "_class_name", "PNDMScheduler", f"DDPMScheduler and DDIMScheduler and {' and '.join(PIPELINES_OF)}"),
    ("scheduler", "clip_sample", "often", "True and False"),
    ("scheduler", "clip_sample_range", 2.0, "1.0"),
    ("scheduler", "thresholding", True, "False"),
    ("scheduler", "set_alpha_to_one", False, "True"),
    ("scheduler", "predict_epsilon", False, "True"),
    ("scheduler", "rescale_betas_zero_snr", True, "False"),
    ("scheduler", "beta_schedule", "laplace", "linear, scaled_linear, sigmoid, squaredcos_cap_v2"),
    ("scheduler", "prediction_type", "flow", "epsilon, sample, v_prediction"),
    ("scheduler", "variance_type", "learned", "fixed_small, fixed_large, learned_range, fixed_small_log"),
    ("scheduler", "trained_betas", [0.1, 0.2], "2, the number of trained_betas"),
]


@pytest.mark.parametrize(("part", "name", "value", "supported"), UNSUPPORTED)
def test_an_unsupported_setting_is_named(part, name, value, supported, folder, tmp_path, command):
    file = "config.json" if part == "unet" else "scheduler_config.json"
    change_json(folder / part / file, **{name: value})
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    shown = f"num_train_timesteps={T}" if name == "trained_betas" else f"{name}={value!r}"
    assert f"{file} has {shown}, which is not supported; supported: {supported}\n" in err
    assert not (tmp_path / "out.ckpt").exists()


BROKEN: dict[str, tuple[Any, str]] = {
    "no_index": (lambda folder: (folder / "model_index.json").unlink(), "there is no .*model_index.json"),
    "no_weights": (
        lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").unlink(),
        f"there is neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin in ",
    ),
    "no_json": (lambda folder: (folder / "unet" / "config.json").write_text("{"), "config.json is not JSON"),
    "a_list": (
        lambda folder: (folder / "unet" / "config.json").write_text("[]"),
        "is not a configuration of diffusers",
    ),
    "another_pipeline": (
        lambda folder: change_json(folder / "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name='StableDiffusionPipeline', which is not supported; supported: DDPMPipeline and",
    ),
    "uneven_blocks": (
        lambda folder: change_json(folder / "unet" / "config.json", up_block_types=["UpBlock2D"]),
        r"up_block_types=\['UpBlock2D'\], which is not supported; supported: 2 blocks, as in block_out_channels",
    ),
    "learned_without_channels": (
        lambda folder: change_json(folder / "scheduler" / "scheduler_config.json", variance_type="learned_range"),
        "the network's output has 1 times the images' channels and the variance is learned_range",
    ),
    "learned_by_ddim": (
        lambda folder: (
            change_json(folder / "unet" / "config.json", out_channels=2),
            change_json(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
        ),
        "is of a DDIMScheduler, which cannot read the network's learned variance",
    ),
    "impossible_betas": (
        lambda folder: change_json(folder / "scheduler" / "scheduler_config.json", beta_end=2.0),
        "every beta must lie in",
    ),
    "impossible_groups": (
        lambda folder: change_json(folder / "unet" / "config.json", norm_num_groups=5),
        "channels must be a multiple of groups, got 8 and 5",
    ),
    "damaged": (
        lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").write_bytes(b"nothing"),
        "safetensors is damaged, or holds more than weights",
    ),
    "a_weight_too_few": (
        lambda folder: change_weights(folder, {"conv_in.bias": None}),
        r"conv_in.bias is missing, expected \[8\]",
    ),
    "a_weight_too_many": (
        lambda folder: change_weights(folder, {"more": torch.ones(1)}),
        r"more is \[1\], expected no such weight",
    ),
    "another_shape": (
        lambda folder: change_weights(folder, {"conv_in.bias": torch.ones(3)}),
        r"conv_in.bias is \[3\], expected \[8\]",
    ),
}


def change_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(path) | changes
    save_file({name: value for name, value in state.items() if value is not None}, path)


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_read_is_refused(name, folder, tmp_path, command):
    damage, message = BROKEN[name]
    damage(folder)
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert re.search(message, err), err
    assert not (tmp_path / "out.ckpt").exists()


def test_weights_that_hold_code_are_refused(folder, tmp_path, command):
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    torch.save({"conv_in.bias": Path("code")}, folder / "unet" / f"{WEIGHTS}.bin")
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert f"{WEIGHTS}.bin is refused: it holds more than weights and plain data" in err


@pytest.mark.parametrize("existing", ["out.ckpt", "out.yaml"])
def test_import_does_not_overwrite_files(existing, folder, tmp_path, command):
    (tmp_path / existing).write_text("mine")
    status, _, err = command("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    assert status == 2
    assert f"{tmp_path / existing} exists already" in err
    assert (tmp_path / existing).read_text() == "mine"


def test_an_import_that_was_killed_can_be_repeated(folder, tmp_path, command, monkeypatch):
    def stop(*_):
        raise SystemExit(137)

    words = ("import", "--folder", folder, "--out", tmp_path / "out.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", stop)
        assert command(*words)[0] == 137
    assert [path.name for path in tmp_path.glob("out.*")] == ["out.yaml"]
    status, _, err = command(*words)
    assert status == 0, err
    assert (tmp_path / "out.ckpt").is_file()


def test_import_needs_the_name_of_a_checkpoint_and_an_existing_folder(folder, tmp_path, command):
    _, _, err = command("import", "--folder", folder, "--out", tmp_path / "out")
    assert "must be a file name that ends in .ckpt" in err
    _, _, err = command("import", "--folder", tmp_path / "nowhere", "--out", tmp_path / "out.ckpt")
    assert f"there is no folder {tmp_path / 'nowhere'}" in err
