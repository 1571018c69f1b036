"""Models exported for diffusers generate the same images there; the command line writes complete folders."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from helpers.command_outputs import read_files
from helpers.diffusers_models import (
    MODELS,
    WEIGHTS,
    T,
    assert_same_images,
    assert_same_samples,
    sample_here,
    sample_in_diffusers,
    write_checkpoint,
)
from safetensors.torch import load_file

from lightning_ddpm.commands import convert
from lightning_ddpm.diffusion import (
    DDIM,
    Ancestral,
    FixedLarge,
    FixedSmall,
    Linear,
    PosteriorMean,
)
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_generates_the_same_images_in_diffusers(name, tmp_path, command, monkeypatch):
    path = write_checkpoint(tmp_path / "model.ckpt", **MODELS[name])
    status, out, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 0, err
    assert "EMA weights" in out
    pipe = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, DDPMScheduler)
    assert_same_samples(load(path, DDPM), pipe, monkeypatch)


def test_it_generates_the_same_images_with_many_steps(tmp_path, command, monkeypatch):
    path = write_checkpoint(tmp_path / "model.ckpt", schedule=Linear(250, 4e-4, 0.08), sampler=Ancestral(FixedLarge()))
    assert command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    assert_same_images(
        sample_here(load(path, DDPM)), sample_in_diffusers(DDPMPipeline.from_pretrained(tmp_path / "out"), monkeypatch)
    )


def test_a_ddim_model_generates_the_same_images_with_the_printed_arguments(tmp_path, command, monkeypatch):
    path = write_checkpoint(tmp_path / "model.ckpt", schedule=Linear(T), sampler=DDIM(steps=None, eta=0.5))
    _, out, _ = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert "variance fixed_small" in out
    assert "DDIMPipeline: eta=0.5, use_clipped_model_output=True, num_inference_steps=20" in out
    assert "diffusers chooses" not in out
    pipe = DDIMPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, DDIMScheduler)
    call = {"eta": 0.5, "use_clipped_model_output": True}
    assert_same_images(sample_here(load(path, DDPM)), sample_in_diffusers(pipe, monkeypatch, **call))


def test_fewer_steps_are_reported_as_an_argument_of_the_call(tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt", sampler=Ancestral(FixedSmall(), steps=5))
    _, out, _ = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert "num_inference_steps=5; diffusers has its own choice of these steps among the T" in out


def test_the_folder_has_the_files_of_from_pretrained_with_the_averaged_weights(tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt")
    command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    files = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    unet, chain = {"unet/config.json", f"unet/{WEIGHTS}.safetensors"}, {"scheduler/scheduler_config.json"}
    assert files == unet | chain | {"model_index.json"}
    state = load_file(tmp_path / "out" / "unet" / f"{WEIGHTS}.safetensors")
    averaged = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(state["conv_in.weight"], averaged["network.first.weight"])


def test_another_variance_can_be_given(tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt", sampler=DDIM(5))
    out = tmp_path / "out"
    arguments = ("--format", "diffusers", "--out", out, "--variance", "fixed_large")
    status, printed, _ = command("export", "--ckpt", path, *arguments)
    assert status == 0
    assert "DDIM" not in printed
    assert DDPMPipeline.from_pretrained(out).scheduler.config.variance_type == "fixed_large"


def test_a_user_error_in_export_leaves_no_folder_and_exits_with_2(tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt", parameterization=PosteriorMean())
    status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 2
    assert err.startswith("error: diffusers' DDPMScheduler has the parameterizations")
    assert not (tmp_path / "out").exists()


def test_an_export_that_was_killed_is_written_again(tmp_path, command, monkeypatch):
    path = write_checkpoint(tmp_path / "model.ckpt")
    words = ("export", "--ckpt", path, "--format", "diffusers", "--out")

    def stop(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_json", stop)
        assert command(*words, tmp_path / "killed")[0] == 137
    assert [*(tmp_path / "killed").rglob("*.safetensors")]
    for name in ("killed", "whole"):
        status, _, err = command(*words, tmp_path / name)
        assert status == 0, err
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")
    assert command(*words, tmp_path / "whole")[0] == 2


def test_export_does_not_overwrite_a_folder(tmp_path, command):
    path = write_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    status, _, err = command("export", "--ckpt", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert status == 2
    assert f"{tmp_path / 'out'} is not empty; choose another folder" in err
