"""T = 1: a schedule of one step, whose reverse chain is a single prediction of x_0 from x_T."""

import math

import pytest
import torch
from helpers.known_data import randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    DDRM,
    X0,
    AdaptiveODE,
    Ancestral,
    Cosine,
    Denoiser,
    DPMSolverPP,
    EulerMaruyama,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    Heun,
    Identity,
    LearnedRange,
    Linear,
    NoiseSchedule,
    PredictorCorrector,
    Quadratic,
    RePaint,
    Sampler,
    SDEdit,
    Sigmoid,
    Velocity,
    elbo,
    interpolate,
    quadratic_spacing,
    trailing_spacing,
    uniform_spacing,
)
from lightning_ddpm.diffusion.samplers.ddim import invert
from lightning_ddpm.diffusion.samplers.ode import exact_divergence, flow_log_likelihood
from lightning_ddpm.diffusion.timesteps import sample_stratified, sum_by_quarter
from lightning_ddpm.models.steps import format_quarters
from lightning_ddpm.utils.errors import UserError

SCHEDULES = [Linear(1), Linear(1, 0.5, 0.5), Quadratic(1), Sigmoid(1), Cosine(1), ExplicitBetas([0.9])]
SPACINGS = [uniform_spacing, quadratic_spacing, trailing_spacing]
ONE_STEP = [
    *(DDIM(1, spacing=spacing) for spacing in SPACINGS),
    *(Ancestral(variance) for variance in (FixedLarge(), FixedSmall(), LearnedRange())),
    DDIM(1, eta=1.0),
    DPMSolverPP(1),
    DPMSolverPP(1, eta=1.0),
    Heun(1),
    AdaptiveODE(),
    PredictorCorrector(DDIM(1)),
    SDEdit(DDIM(1), torch.zeros(1, 4, 4), 1.0),
    RePaint(DDIM(1), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), passes=2),
]


def predict(x_t: Tensor, t: Tensor) -> Tensor:
    """Predict an image; t must be 1."""
    assert (t == 1).all()
    return torch.tanh(x_t) / 2


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("sampler", ONE_STEP, ids=str)
def test_every_sampler_returns_the_predicted_image(sampler: Sampler, schedule: NoiseSchedule) -> None:
    x_T = randn(3, 1, 4, 4)
    expected = predict(x_T, torch.ones(3))
    if isinstance(sampler, SDEdit):  # it starts from the image's own x_T
        expected = predict(schedule.noise[1].float() * x_T, torch.ones(3))
    if isinstance(sampler, RePaint):  # the second pass starts from the first one's image with noise on it
        sampler = RePaint(DDIM(1), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), passes=1)
    found = sampler.sample(Denoiser(predict, schedule, parameterization=X0()), x_T)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_reverse_sde_takes_one_euler_step() -> None:
    schedule, x_T = Linear(1, 0.5, 0.5), randn(3, 1, 4, 4)
    x_0 = predict(x_T, torch.ones(3))
    eps = (x_T - math.sqrt(0.5) * x_0) / math.sqrt(0.5)
    found = EulerMaruyama().sample(Denoiser(predict, schedule, parameterization=X0()), x_T)
    torch.testing.assert_close(found, x_T + math.log(2) * (x_T / 2 - eps / math.sqrt(0.5)), rtol=0, atol=1e-5)


def test_ddrm_restores_a_noiseless_image_and_repaint_keeps_what_is_known() -> None:
    denoise, x, y = Denoiser(predict, Linear(1), parameterization=X0()), randn(2, 1, 4, 4), randn(2, 1, 4, 4).tanh()
    torch.testing.assert_close(DDRM(Identity(), y, steps=1).sample(denoise, x), y, rtol=0, atol=1e-6)
    assert torch.equal(RePaint(DDIM(1), y, torch.ones(1, 4, 4)).sample(denoise, x), y)
    assert torch.equal(SDEdit(DDIM(1), y, 0.0).sample(denoise, x), y)


def test_the_flow_of_one_step_is_the_identity() -> None:
    x = randn(5, 1, 2, 2, dtype=torch.float64)
    found = flow_log_likelihood(Denoiser(lambda x, t: x, Linear(1), None, Velocity()), x, exact_divergence)
    expected = torch.distributions.Normal(0, 1).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(found, expected)


def test_inversion_and_interpolation_take_the_one_step() -> None:
    denoise, x = Denoiser(predict, Linear(1, 0.5, 0.5), parameterization=X0()), randn(2, 1, 4, 4).tanh()
    assert invert(denoise, x, steps=1).isfinite().all()
    assert interpolate(denoise, x[0], x[1], torch.linspace(0, 1, 3), DDIM(1)).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("sampler", [DDIM(2), Heun(2), DPMSolverPP(2), Ancestral(FixedSmall(), 2)], ids=str)
def test_more_steps_than_the_schedule_has_are_refused(sampler: Sampler) -> None:
    with pytest.raises(UserError, match=r"sampling steps must lie in 1..1 \(the schedule's T\), got 2"):
        sampler.nfe(1)


def test_the_elbo_states_that_it_needs_two_steps() -> None:
    with pytest.raises(UserError, match="give the schedule at least 2 steps, got 1"):
        elbo(Denoiser(predict, Linear(1), parameterization=X0()), FixedLarge(), torch.zeros(1, 1, 2, 2))


def test_all_timesteps_fall_into_the_first_quarter() -> None:
    t = sample_stratified(5, 1, torch.Generator())
    assert t.tolist() == [1] * 5
    sums, counts = sum_by_quarter(torch.ones(5), t, 1)
    assert (sums.tolist(), counts.tolist()) == ([5, 0, 0, 0], [5, 0, 0, 0])
    assert format_quarters(1)[0] == "0-1"
