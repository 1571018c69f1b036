"""Wrong input of ``sample``: an error in one sentence, and nothing is written."""

import pytest
import torch
from helpers.command_line import REPOSITORY, read_yaml, write_yaml
from helpers.command_outputs import get_error_sentence, read_files, write_noise_image
from jsonargparse import Namespace
from pytorch_lightning import LightningModule

from lightning_ddpm.commands import options as model_options
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.yaml_text import build_parser


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--n", "0"), "--n must be at least 1, got 0"),
        (("--n", "-3"), "--n must be at least 1, got -3"),
        (("--batch_size", "0"), "--batch_size must be at least 1, got 0"),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--steps", "21"), "1..20 (the schedule's T), got 21"),
        (("--sampler", "Heun", "--steps", "21"), "1..20 (the schedule's T), got 21"),
        (
            ("--sampler", "Hoen"),
            "there is no sampler Hoen; did you mean Heun? There are AdaptiveODE, Ancestral, DDIM, DPM",
        ),
        (("--sampler", "Heun", "--sampler.eta", "1"), "there is no option --sampler.eta; Heun has "),
        (("--sampler", "Ancestral"), "the sampler Ancestral needs --sampler.variance; "),
        (("--sampler", "AdaptiveODE", "--steps", "3"), "AdaptiveODE takes no --steps"),
        (("--sampler", "DDIM", "--sampler.eta", "2"), "eta must lie in [0, 1], got 2"),
        (("--n", "five"), "--n expects int, got 'five'"),
        (("--sample", "Heun"), "there is no option --sample; did you mean --sampler?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_numbers_and_samplers_are_refused(options, message, digits_run, command, tmp_path):
    out = tmp_path / "out"
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--out", out, *options)
    assert message in get_error_sentence(status, err)
    assert not out.exists()


def test_sampling_into_a_folder_that_cannot_be_written_is_refused(digits_run, command, tmp_path):
    (tmp_path / "file").write_text("a regular file")
    out = tmp_path / "file" / "below"
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--out", out)
    assert str(out) in get_error_sentence(status, err)


def test_sampling_over_a_larger_set_is_refused(digits_run, command, tmp_path):
    write_noise_image(tmp_path / "000007.png")
    before = read_files(tmp_path)
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--n", "3", "--out", tmp_path)
    assert "000007.png" in get_error_sentence(status, err)
    assert read_files(tmp_path) == before


def test_raw_weights_are_refused_if_the_checkpoint_has_no_separate_average(digits_run, command, tmp_path):
    checkpoint = torch.load(digits_run.folder / "last.ckpt", weights_only=True)
    del checkpoint["current_model_state"]
    torch.save(checkpoint, tmp_path / "stripped.ckpt")
    status, _, err = command("sample", "--ckpt", tmp_path / "stripped.ckpt", "--raw", "--out", tmp_path / "out")
    assert "--raw" in get_error_sentence(status, err)


def test_a_classifier_cannot_be_sampled(command, tmp_path):
    config = read_yaml(REPOSITORY / "configs" / "digits_features.yaml")
    config["trainer"].update(
        default_root_dir=str(tmp_path / "run"), accelerator="cpu", max_steps=1, log_every_n_steps=1
    )
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    weights = tmp_path / "run" / "last.ckpt"
    status, _, err = command("sample", "--ckpt", weights, "--out", tmp_path / "out")
    message = get_error_sentence(status, err)
    assert "Classifier" in message
    assert "DDPM" in message
    assert not (tmp_path / "out").exists()


class Black(LightningModule):
    """Generates black images, without diffusion."""

    image_shape, values = (1, 8, 8), UINT8

    def generate(self, request: SampleRequest, start: int, stop: int) -> torch.Tensor:
        return torch.zeros(stop - start, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "value"), [("guidance", 0.0), ("threshold", 0.0), ("steps", 5), ("compile", True)])
def test_an_option_of_diffusion_is_refused_for_other_models_also_if_it_is_zero(name, value, monkeypatch):
    monkeypatch.setattr(model_options, "load", lambda *_, **__: Black())
    given = {"ckpt": "black.ckpt", "raw": False, "compile": False} | {name: value}
    with pytest.raises(UserError, match=f"--{name} needs a DDPM, and Black generates its images without it"):
        model_options.load_model(build_parser("sample", "Generate images."), Namespace(**given))
