"""Uncertainty weighting: what it learns, its gradients, and what it refuses."""

import pytest
import torch
from helpers.command_line import callback, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence
from torch import Tensor

from lightning_ddpm.diffusion import (
    EDM,
    VLB,
    Denoiser,
    FixedLarge,
    Hybrid,
    MeanFlow,
    Objective,
    Simple,
    UncertaintyWeighted,
    VarianceExploding,
)
from lightning_ddpm.utils.errors import UserError

SIGMA_DATA = 0.25


def predict(x_t: Tensor, t: Tensor) -> Tensor:
    return 0 * x_t


def sample(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_0 ~ N(0, 1), t and eps."""
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, n, 1, 4, 4, generator=generator)
    return x_0, 1 + 999 * torch.rand(n, generator=generator), eps


def make_denoiser() -> Denoiser:
    return Denoiser(predict, VarianceExploding(), None, EDM(SIGMA_DATA))


def test_it_learns_the_logarithm_of_the_expected_loss() -> None:
    """Of an output of 0 for EDM's target: (sigma^2 + s^4) / (s^2 (sigma^2 + s^2)), which is from 1 to 1 / s^2."""
    objective, denoise = UncertaintyWeighted(), make_denoiser()
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03)
    for step in range(400):
        optimizer.zero_grad()
        objective.losses(denoise, *sample(256, step)).mean().backward()
        optimizer.step()
    t = torch.linspace(50, 950, 19)
    sigma = denoise.schedule.noise_at(t) / denoise.schedule.signal_at(t)
    expected = (sigma**2 + SIGMA_DATA**4) / (SIGMA_DATA**2 * (sigma**2 + SIGMA_DATA**2))
    assert expected.log().max() - expected.log().min() > 2.5
    with torch.no_grad():
        found = objective.log_uncertainty(denoise.schedule, t).double()
    torch.testing.assert_close(found, expected.log(), rtol=0, atol=0.2)


def test_it_starts_as_the_objective_and_scales_its_gradient_by_exp_of_minus_u() -> None:
    objective, scale = UncertaintyWeighted(), torch.ones(8, 1, 1, 1, requires_grad=True)
    denoise = Denoiser(lambda x_t, t: scale * x_t, VarianceExploding(), None, EDM(SIGMA_DATA))
    x_0, t, eps = sample(8, 0)
    plain = Simple().losses(denoise, x_0, t, eps)
    assert torch.equal(objective.losses(denoise, x_0, t, eps), plain)
    torch.nn.init.normal_(objective.linear.weight)
    (before,) = torch.autograd.grad(plain.sum(), scale)
    (after,) = torch.autograd.grad(objective.losses(denoise, x_0, t, eps).sum(), scale)
    u = objective.log_uncertainty(denoise.schedule, t).detach()
    assert u.abs().max() > 0.1
    torch.testing.assert_close(after.flatten(), before.flatten() * (-u).exp())


@pytest.mark.parametrize("objective", [VLB(FixedLarge()), Hybrid(), UncertaintyWeighted(), MeanFlow()])
def test_an_objective_with_weights_of_its_own_is_refused(objective: Objective) -> None:
    with pytest.raises(UserError, match=f"and {type(objective).__name__} has weights of its own; use Simple"):
        UncertaintyWeighted(objective)
    UncertaintyWeighted(MeanFlow(power=0.0))


def test_u_is_linear_in_as_many_features_as_requested_whose_squares_add_up_to_one() -> None:
    for features in (16, 128):
        objective = UncertaintyWeighted(features=features)
        found = []
        objective.linear.register_forward_pre_hook(lambda _, inputs, found=found: found.append(inputs[0]))
        objective.log_uncertainty(VarianceExploding(), torch.linspace(1, 1000, 400))
        assert found[0].shape == (400, features)
        assert float(found[0].square().sum(1).mean()) == pytest.approx(1, abs=0.1)
    with pytest.raises(UserError, match=r"needs at least one feature, got 0; Karras et al. use 128"):
        UncertaintyWeighted(features=0)


def test_a_run_trains_it_and_cannot_be_resumed_without_it(command, tmp_path) -> None:
    config = tiny_digits(tmp_path / "run")
    callback(config, "Checkpoints").update(monitor=None)
    kept = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Checkpoints"))]
    config["trainer"].update(callbacks=kept, limit_val_batches=0, max_steps=2)
    path = write_yaml(tmp_path / "config.yaml", config)
    status, _, err = command("fit", "--config", path, "--model.objective", "UncertaintyWeighted")
    assert status == 0, err
    weights = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert weights["objective.linear.weight"].abs().max() > 0
    sampled = ("--n", "2", "--steps", "2", "--out", tmp_path / "samples")
    status, _, err = command("sample", "--ckpt", tmp_path / "run" / "last.ckpt", *sampled)
    assert status == 0, err
    status, _, err = command("fit", "--config", path, "--ckpt_path", "last")
    assert "model.init_args.objective" in (message := get_error_sentence(status, err))
    assert "a run cannot be resumed with another value" in message
