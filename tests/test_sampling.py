"""Samplers against diffusers', against Gaussian data whose noise is known in closed form, and against each other."""

import re
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    Ancestral,
    Cosine,
    Denoised,
    Denoiser,
    FixedLarge,
    FixedSmall,
    Linear,
    NoiseSchedule,
    Quadratic,
    Sampler,
    posterior_variance,
    q_posterior,
    quadratic,
    transition_variance,
    uniform,
)
from lightning_ddpm.errors import UserError

LINEAR = Linear(1000)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Some noise prediction of order 1, different at every pixel and every step."""
    return torch.sin(3 * x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 100) + 0.8 * x_t


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def recorded_noise(seed: int) -> Callable[[Tensor], Tensor]:
    """Noise in the order that diffusers draws it from ``torch.Generator().manual_seed(seed)``."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def trailing(T: int, steps: int) -> list[int]:
    """diffusers' steps ``trailing``: T/steps, 2T/steps, ..., T."""
    return [T * i // steps for i in range(1, steps + 1)]


class Recorder:
    """Counts and keeps what a network is asked."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.steps.append(t)
        return network(x_t, t)


SAMPLERS = [
    Ancestral(FixedSmall()),
    Ancestral(FixedLarge()),
    Ancestral(FixedSmall(), steps=7),
    Ancestral(FixedLarge(), steps=20, spacing=quadratic),
    DDIM(steps=None),
    DDIM(steps=20, eta=0.5),
    DDIM(steps=1),
    DDIM(steps=20, eta=1, spacing=quadratic),
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


# ---- against diffusers -------------------------------------------------------------------------------------------


def largest_difference(
    sampler: Sampler, denoise: Denoiser, times: list[int], their_step: Callable[[Tensor, int, Tensor], Tensor]
) -> float:
    """Over all steps of our chain: how far their single step from our x_t ends from ours."""
    x, largest = randn(2, 3, 4, 4), 0.0
    for t, ours in zip(reversed(times), sampler.trajectory(denoise, x, recorded_noise(1)), strict=True):
        theirs = their_step(network(x, torch.tensor([t, t])), t - 1, x)
        largest, x = max(largest, (theirs - ours).abs().max().item()), ours
    assert x.abs().max() < 100
    return largest


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(("variance", "name"), [(FixedSmall(), "fixed_small"), (FixedLarge(), "fixed_large")])
def test_every_ancestral_step_is_diffusers(variance: FixedSmall | FixedLarge, name: str, clip: float | None) -> None:
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type=name, clip_sample=clip is not None)
    generator = torch.Generator().manual_seed(1)

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        return theirs.step(eps, t, x, generator=generator).prev_sample

    denoise = Denoiser(network, LINEAR, clip)
    assert largest_difference(Ancestral(variance), denoise, list(range(1, 1001)), step) < 1e-5


@pytest.mark.parametrize(("variance", "name"), [(FixedSmall(), "fixed_small"), (FixedLarge(), "fixed_large")])
def test_ancestral_steps_that_skip_are_diffusers(variance: FixedSmall | FixedLarge, name: str) -> None:
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type=name, timestep_spacing="linspace")
    theirs.set_timesteps(50)
    generator = torch.Generator().manual_seed(1)

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        return theirs.step(eps, t, x, generator=generator).prev_sample

    sampler = Ancestral(variance, steps=50, spacing=uniform)
    assert largest_difference(sampler, Denoiser(network, LINEAR), uniform(1000, 50), step) < 1e-5


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_every_ddim_step_is_diffusers(steps: int, eta: float, clip: float | None) -> None:
    theirs = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=clip is not None, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.set_timesteps(steps)
    assert (theirs.timesteps.flip(0) + 1).tolist() == trailing(1000, steps)
    generator = torch.Generator().manual_seed(1)

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        stepped = theirs.step(eps, t, x, eta=eta, use_clipped_model_output=clip is not None, generator=generator)
        return stepped.prev_sample

    sampler = DDIM(steps, eta, spacing=trailing)
    assert largest_difference(sampler, Denoiser(network, LINEAR, clip), trailing(1000, steps), step) < 1e-5


@pytest.mark.parametrize("steps", [2, 10, 50, 100, 999, 1000])
def test_uniform_spacing_is_diffusers_linspace(steps: int) -> None:
    theirs = DDIMScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    assert (theirs.timesteps.flip(0) + 1).tolist() == uniform(1000, steps)


# ---- against each other, and against the formulas ----------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, Cosine(100), Quadratic(100)], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(("steps", "spacing"), [(None, uniform), (20, uniform), (20, quadratic)])
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance(
    schedule: NoiseSchedule, steps: int | None, spacing: Callable[[int, int], list[int]]
) -> None:
    denoise, x_T = Denoiser(network, schedule), randn(2, 3, 4, 4, dtype=torch.float64)
    implicit = DDIM(steps, 1.0, spacing).trajectory(denoise, x_T, recorded_noise(1))
    ancestral = Ancestral(FixedSmall(), steps, spacing).trajectory(denoise, x_T, recorded_noise(1))
    for ours, theirs in zip(implicit, ancestral, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=repr)
def test_an_ancestral_step_is_the_posteriors_mean_and_the_noise_of_the_chosen_variance(
    variance: FixedSmall | FixedLarge,
) -> None:
    denoise, x, noise = Denoiser(network, LINEAR), randn(2, 3, 4, 4, dtype=torch.float64), recorded_noise(1)
    expected_noise, times = recorded_noise(1), uniform(1000, 10)
    sampler = Ancestral(variance, steps=10)
    for (s, t), x_s in zip(
        reversed(list(zip([0, *times], times, strict=False))), sampler.trajectory(denoise, x, noise), strict=True
    ):
        mean, small = q_posterior(LINEAR, x, denoise(x, t).x_0, s, t)
        large = transition_variance(LINEAR, s, t)
        sigma = (large if isinstance(variance, FixedLarge) else small).sqrt()
        expected = mean if s == 0 else mean + sigma * expected_noise(x)
        torch.testing.assert_close(x_s, expected, rtol=0, atol=1e-12)
        x = x_s


def test_the_large_variance_is_the_transitions_and_the_small_one_the_posteriors() -> None:
    for s, t in [(0, 1), (1, 2), (499, 500), (980, 1000), (0, 1000)]:
        assert FixedLarge().variance(LINEAR, s, t) == transition_variance(LINEAR, s, t)
        assert FixedSmall().variance(LINEAR, s, t) == posterior_variance(LINEAR, s, t)
    assert FixedSmall().variance(LINEAR, 1, 2) < 0.5 * FixedLarge().variance(LINEAR, 1, 2)


def test_ddim_without_noise_is_a_function_of_x_T() -> None:
    def no_noise(like: Tensor) -> Tensor:
        raise AssertionError("eta = 0 draws nothing")

    x_T = randn(2, 3, 4, 4)
    denoise = Denoiser(network, LINEAR)
    assert torch.equal(DDIM(10).sample(denoise, x_T, no_noise), DDIM(10).sample(denoise, x_T, no_noise))


# ---- Gaussian data, whose eps is known ---------------------------------------------------------------------------


def analytic(schedule: NoiseSchedule, mu: float, s: float) -> Denoiser:
    """E[eps | x_t] for x_0 ~ N(mu, s^2): x_t ~ N(signal mu, signal^2 s^2 + noise^2)."""

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = (table[t].view(-1, 1, 1, 1).to(x_t.dtype) for table in (schedule.signal, schedule.noise))
        return noise * (x_t - signal * mu) / (signal**2 * s**2 + noise**2)

    return Denoiser(eps, schedule, clip=None)


def moments(sampler: Sampler, denoise: Denoiser) -> tuple[float, float]:
    """Mean and variance of x_0, without Monte Carlo error, of a sampler whose steps are all linear.

    A batch of responses: image 0 is made of no noise at all, image k of a single 1 in the k-th noise (the first being
    x_T). So x_0 = responses[0] + sum_k noise_k (responses[k] - responses[0]) for any independent standard noises.
    """
    units = iter(torch.eye(denoise.schedule.T + 2, dtype=torch.float64)[1:])

    def unit(like: Tensor) -> Tensor:
        return next(units).view(-1, 1, 1, 1)

    responses = sampler.sample(denoise, unit(torch.empty(0)), unit).flatten()
    return responses[0].item(), (responses - responses[0]).square().sum().item()


@pytest.mark.parametrize(
    ("sampler", "mean_error", "variance_error"),
    [
        # each as far from the truth as its number of steps lets it be: twice the error means twice the formula's
        (Ancestral(FixedSmall()), 1e-4, 0.01),
        (Ancestral(FixedLarge()), 1e-4, 0.01),
        (DDIM(None, 0.0), 2e-3, 0.01),
        (DDIM(None, 0.5), 2e-3, 0.01),
        (DDIM(None, 1.0), 2e-3, 0.01),
        (DDIM(500, 0.0, uniform), 2e-3, 0.02),
        (DDIM(500, 0.0, quadratic), 2e-3, 0.02),
        (DDIM(500, 1.0, quadratic), 2e-3, 0.02),
        (Ancestral(FixedSmall(), 500, quadratic), 2e-3, 0.02),
    ],
    ids=lambda each: repr(each),
)
@pytest.mark.parametrize(("mu", "s"), [(0.3, 0.5), (-0.8, 0.1), (0.0, 1.0)])
def test_gaussian_data_are_recovered(
    sampler: Sampler, mean_error: float, variance_error: float, mu: float, s: float
) -> None:
    mean, variance = moments(sampler, analytic(LINEAR, mu, s))
    print(sampler, mu, s, mean - mu, variance / s**2 - 1)
    assert mean == pytest.approx(mu, abs=mean_error)
    assert variance == pytest.approx(s**2, rel=variance_error)
