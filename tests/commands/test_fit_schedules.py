"""Schedules, samplers and spacings that a config names: the user's own, and wrong ones."""

import numpy as np
import pytest
from helpers.command_line import callback, tiny_digits, write_yaml
from helpers.command_outputs import read_images, read_losses

from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM


def schedule(name, prediction=None, **arguments):
    """Return a function that sets a config's schedule, and the parameterization if one is named."""

    def change(config):
        init_args = config["model"]["init_args"]
        init_args["schedule"] = {"class_path": f"lightning_ddpm.diffusion.{name}", "init_args": arguments}
        if prediction:
            init_args["parameterization"] = f"lightning_ddpm.diffusion.{prediction}"

    return change


LINEAR = {"class_path": "lightning_ddpm.diffusion.Linear", "init_args": {"steps": 20, "beta_max": 0.3}}


@pytest.mark.parametrize(
    "change",
    [
        schedule("ExplicitBetas", betas=[0.05] * 10 + [0.3] * 10),
        schedule("AlphaBarFunction", alpha_bar="my_schedule.falling", steps=20),
        schedule("ZeroTerminalSNR", prediction="Velocity", schedule=LINEAR),
    ],
    ids=["betas", "alpha_bar", "zero"],
)
def test_a_custom_schedule_trains_and_its_checkpoint_is_sampled(change, command, own_module, tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = tiny_digits(run)
    change(config)
    config["trainer"]["max_steps"] = 2
    config["model"]["init_args"]["sampler"]["init_args"]["spacing"] = "lightning_ddpm.diffusion.trailing_spacing"
    with monkeypatch.context() as patch:
        patch.delenv("LIGHTNING_DDPM_TRUST")
        status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    trust = "LIGHTNING_DDPM_TRUST=my_schedule " if "my_schedule" in str(config) else ""
    assert f"done: {trust}python -m lightning_ddpm sample --ckpt {run / 'last.ckpt'} --n 64 --out samples" in out
    assert all(np.isfinite(loss) for _, loss in read_losses(run))
    model = load(run / "last.ckpt", DDPM)
    assert model.schedule.T == 20
    assert type(model.schedule).__name__ == config["model"]["init_args"]["schedule"]["class_path"].split(".")[-1]
    if type(model.schedule).__name__ == "AlphaBarFunction":
        assert model.schedule.alpha_bar[10].item() == pytest.approx(0.25)
    status, out, err = command("sample", "--ckpt", run / "last.ckpt", "--n", "3", "--out", tmp_path / "images")
    assert status == 0, err
    assert "spacing=trailing" in out
    assert read_images(tmp_path / "images", 3).std() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (schedule("ExplicitBetas", betas=[]), "empty; give beta_1..beta_T"),
        (schedule("ExplicitBetas", betas=[1.0, 0.1]), "every beta must lie in (0, 1), got beta_1=1"),
        (schedule("ExplicitBetas", betas=[0.1, float("nan")]), "got beta_2=nan"),
        (schedule("ExplicitBetas", betas=[0.1, float("inf")]), "got beta_2=inf"),
        (schedule("ExplicitBetas", betas=[0.1, 1e-18]), "beta_2=1e-18 is too small"),
        (schedule("AlphaBarFunction", alpha_bar="my_schedule.rising", steps=20), "got 1.05 at time 1/20 after 1"),
        (
            schedule("AlphaBarFunction", alpha_bar="my_schedule.falling", max_beta=1.0),
            "max_beta must lie in (0, 1), got 1",
        ),
        (
            schedule("ZeroTerminalSNR", schedule=LINEAR),
            "Epsilon does not determine x_0 there; predict Velocity or X0",
        ),
    ],
    ids=["empty", "one", "nan", "inf", "small", "rising", "cut", "epsilon"],
)
def test_an_invalid_custom_schedule_is_refused_with_the_fix(change, message, refused, own_module):
    assert message in refused(change)


def test_an_alpha_bar_that_does_not_exist_is_named(refused):
    assert "nowhere.to_be_found" in refused(schedule("AlphaBarFunction", alpha_bar="nowhere.to_be_found"))


def test_a_chain_without_steps_is_refused(refused):
    assert "steps=0" in refused(None, "--model.schedule.steps", "0")


@pytest.mark.parametrize(
    ("schedule", "bounds"),
    [
        ("Linear", {"beta_min": 0.0}),
        ("Linear", {"beta_min": -0.1}),
        ("Linear", {"beta_max": 1.0}),
        ("Quadratic", {"beta_min": -0.1}),
        ("Quadratic", {"beta_max": 1.0}),
        ("Sigmoid", {"beta_min": -0.1}),
        ("Sigmoid", {"beta_max": 1.01}),
    ],
    ids=str,
)
def test_a_beta_outside_0_to_1_is_refused(schedule, bounds, refused):
    def change(config):
        class_path = f"lightning_ddpm.diffusion.{schedule}"
        config["model"]["init_args"]["schedule"] = {"class_path": class_path, "init_args": {"steps": 20, **bounds}}

    assert "every beta must lie in (0, 1)" in refused(change)


def test_a_sampler_with_more_steps_than_the_schedule_is_refused(refused):
    message = refused(None, "--model.sampler.steps", "21")
    assert "must lie in 1..20" in message
    assert "got 21" in message


def test_a_callbacks_sampler_with_more_steps_than_the_schedule_is_refused(refused):
    long = {"class_path": "lightning_ddpm.diffusion.DDIM", "init_args": {"steps": 21}}
    for name in ("Evaluation", "SampleGrid"):
        message = refused(lambda config, name=name: callback(config, name).update(sampler=long))
        assert "must lie in 1..20" in message


def test_a_spacing_that_is_too_short_is_refused(refused, own_module):
    message = refused(None, "--model.sampler.spacing", "my_schedule.short")
    assert "5 steps must return 5 increasing timesteps" in message
    assert "got [20] from short" in message
