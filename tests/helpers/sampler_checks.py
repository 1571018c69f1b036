"""Networks, data and measurements that the tests of samplers share."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from helpers.known_data import Mixture, randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    Denoiser,
    Epsilon,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    Heun,
    LearnedRange,
    Linear,
    NoiseSchedule,
    Sampler,
    Velocity,
)

LINEAR = Linear(1000)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Predict arbitrary noise of order 1 that differs at every pixel and timestep."""
    return torch.sin(3 * x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 100) + 0.8 * x_t


def network_with_variance(x_t: Tensor, t: Tensor) -> Tensor:
    """Predict arbitrary noise, and v in [-1, 1], that differ at every pixel and timestep."""
    return torch.cat([network(x_t, t), torch.cos(50 * x_t + t.view(-1, 1, 1, 1))], dim=1)


class SeededNoise:
    """Standard normal noise, in the order in which diffusers takes it from ``torch.Generator().manual_seed(seed)``."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class NetworkRecorder:
    """A network that records the timesteps of its calls."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.steps.append(t)
        return network(x_t, t)


PARAMETERIZATIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": Velocity()}

VARIANCES = {"fixed_small": FixedSmall(), "fixed_large": FixedLarge(), "learned_range": LearnedRange()}

every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)

with_and_without_clipping = pytest.mark.parametrize("clip", [None, 1.0])


def use_float64_tables(theirs: DDPMScheduler | DDIMScheduler) -> DDPMScheduler | DDIMScheduler:
    """Replace a diffusers scheduler's tables by float64: in float32, 1 - alpha_bar_2 has four digits."""
    betas = theirs.betas.double()
    if theirs.config.rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    theirs.alphas_cumprod = (1 - betas).cumprod(0)
    return theirs


def find_largest_difference(
    sampler: Sampler, denoise: Denoiser, times: list[int], their_step: Callable[[Tensor, int, Tensor], Tensor]
) -> float:
    """Return the largest difference, over all steps of our chain, of their step from our x_t to our step."""
    x, largest = randn(2, 3, 4, 4), 0.0
    for t, ours in zip(reversed(times), sampler.trajectory(denoise, x, SeededNoise(1)), strict=True):
        theirs = their_step(denoise.network(x, torch.tensor([t, t])), t - 1, x)
        largest, x = max(largest, (theirs - ours).abs().max().item()), ours
    assert 0.1 < x.std() < 10
    return largest


@cache
def truncate_schedule(t: int) -> ExplicitBetas:
    """Return the first t steps of Ho et al.'s schedule."""
    return ExplicitBetas(LINEAR.beta[1 : t + 1].tolist())


def gaussian_denoiser(schedule: NoiseSchedule, mu: float, s: float) -> Denoiser:
    """Return the optimal denoiser of x_0 ~ N(mu, s^2), for which x_t ~ N(signal mu, signal^2 s^2 + noise^2)."""

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = (table[t].view(-1, 1, 1, 1).to(x_t.dtype) for table in (schedule.signal, schedule.noise))
        return noise * (x_t - signal * mu) / (signal**2 * s**2 + noise**2)

    return Denoiser(eps, schedule, clip=None)


def compute_moments(sampler: Sampler, denoise: Denoiser) -> tuple[float, float]:
    """Compute mean and variance of x_0, without Monte Carlo error, for a sampler whose steps are all linear.

    The batch holds responses: image 0 gets no noise at all, image k a single 1 as the k-th noise (the first is x_T). So
    x_0 = responses[0] + sum_k noise_k (responses[k] - responses[0]) for any independent standard noises.
    """
    units = iter(torch.eye(denoise.schedule.T + 2, dtype=torch.float64)[1:])

    def unit(like: Tensor) -> Tensor:
        return next(units).view(-1, 1, 1, 1)

    responses = sampler.sample(denoise, unit(torch.empty(0)), unit).flatten()
    return responses[0].item(), (responses - responses[0]).square().sum().item()


def linear_schedule(T: int) -> Linear:
    """Return T steps to the same noise level: alpha_bar_T is 4e-5 for every T, as in Ho et al.'s schedule."""
    return Linear(T, 0.1 / T, 20 / T)


FINE = Linear(20_000, beta_min=5e-6, beta_max=1e-3)
"""Ho et al.'s schedule in steps so small that every spacing is possible."""


SMOOTH = Mixture([0.3, 0.7], [[-0.7, 0.2], [0.5, -0.3]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, -0.1], [-0.1, 0.2]]])
"""Wide Gaussians, so that solvers reach their asymptotic order with few steps."""


def space_by_angle(T: int, steps: int) -> list[int]:
    """Return equal steps in the angle of FINE."""
    angles = torch.linspace(float(FINE.angle[1]), float(FINE.angle[-1]), steps, dtype=torch.float64)
    return [round(float(t)) for t in FINE.time_at(angles)]


def space_by_lambda(T: int, steps: int) -> list[int]:
    """Return equal steps in lambda = log(signal / noise) of FINE, from t = 20: below, the steps are too coarse."""
    lambdas = (FINE.signal[1:] / FINE.noise[1:]).log()
    wanted = torch.linspace(float(lambdas[19]), float(lambdas[-1]), steps, dtype=torch.float64)
    return [int((lambdas - each).abs().argmin()) + 1 for each in wanted]


def measure_orders(make: Callable[[int], Sampler], steps: tuple[int, ...]) -> list[float]:
    """Return the order of convergence from each number of steps to the next."""
    denoise, x_T = SMOOTH.denoiser(FINE), randn(64, 1, 1, 2, dtype=torch.float64)
    truth = Heun(1600, spacing=space_by_angle).sample(denoise, x_T)
    errors = [float((make(n).sample(denoise, x_T) - truth).abs().mean()) for n in steps]
    return [math.log(a / b) / math.log(m / n) for a, b, n, m in zip(errors, errors[1:], steps, steps[1:], strict=False)]


def randn64(*shape: int, seed: int = 1) -> Tensor:
    """Return standard normal noise in float64 from a new generator."""
    return randn(*shape, seed=seed, dtype=torch.float64)
