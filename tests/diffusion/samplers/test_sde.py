"""The reverse SDE and Langevin corrections, on data with known distributions."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.known_data import ONE, randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    Ancestral,
    Denoiser,
    EulerMaruyama,
    FixedSmall,
    FlowVelocity,
    Heun,
    Linear,
    MarkovSampler,
    MeanFlowSampler,
    PredictorCorrector,
    RectifiedFlow,
    ZeroTerminalSNR,
    uniform_spacing,
)
from lightning_ddpm.utils.errors import UserError

N = 10_000


def test_euler_maruyama_is_of_first_order() -> None:
    schedule, variance = Linear(16_000, beta_min=6e-6, beta_max=1.25e-3), 0.3

    def network(x: Tensor, t: Tensor) -> Tensor:
        return schedule.noise[t[0]] * x / (schedule.alpha_bar[t[0]] * variance + 1 - schedule.alpha_bar[t[0]])

    denoise, errors = Denoiser(network, schedule, clip=None), []
    for steps in (250, 500, 1000, 2000):
        # A step is linear in x_t and in the noise, so that it maps a variance to a variance without sampling.
        sampler, variance_t = EulerMaruyama(steps), torch.ones(1, 1, 1, 1, dtype=torch.float64)
        times = [*reversed(sampler.spacing(schedule.T, steps)), 0]
        for t, s in pairwise(times):
            unit = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            x_factor = sampler.step(denoise, unit, t, s, torch.zeros_like)
            noise_factor = sampler.step(denoise, unit, t, s, torch.ones_like) - x_factor
            variance_t = x_factor**2 * variance_t + noise_factor**2
        errors.append(abs(float(variance_t) - variance))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1] * 3, abs=0.15)


def test_a_langevin_step_is_song_et_als_with_the_norms_of_noise() -> None:
    schedule = Linear(1000)
    denoise = ONE.denoiser(schedule)
    predictor = Ancestral(FixedSmall(), 50)
    x_t, z = randn(3, 1, 1, 2, dtype=torch.float64), randn(3, 1, 1, 2, seed=1, dtype=torch.float64)
    x_s = predictor.step(denoise, x_t, 500, 480, lambda x: z)
    corrected = PredictorCorrector(predictor, snr=0.2).step(denoise, x_t, 500, 480, lambda x: z)
    score = -ONE.eps(schedule, x_s, torch.tensor([480])) / (1 - schedule.alpha_bar[480]).sqrt()
    norms = (1 - schedule.alpha_bar[480]).sqrt()  # ||z|| / ||-z / sqrt(1 - alpha_bar)||
    size = 2 * (1 - schedule.beta[480]) * (0.2 * norms) ** 2
    torch.testing.assert_close(corrected, x_s + size * score + (2 * size).sqrt() * z)


def test_langevin_steps_preserve_the_distribution() -> None:
    schedule, generator = Linear(1000), torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    class NoStep(MarkovSampler):
        steps, spacing = 2, staticmethod(uniform_spacing)

        def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: object) -> Tensor:
            return x_t

    variance = schedule.alpha_bar[300] * ONE.covariance() + (1 - schedule.alpha_bar[300]) * torch.eye(2)
    mean = schedule.signal[300] * ONE.mean()
    x = (mean + noise(torch.empty(N, 2, dtype=torch.float64)) @ torch.linalg.cholesky(variance).T).reshape(N, 1, 1, 2)
    corrected = (
        PredictorCorrector(NoStep(), corrections=50).step(ONE.denoiser(schedule), x, 301, 300, noise).reshape(N, 2)
    )
    assert not torch.allclose(corrected, x.reshape(N, 2), atol=0.1)
    torch.testing.assert_close(corrected.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(corrected.T.cov(), variance, rtol=0, atol=0.04)


def test_every_step_but_the_last_is_corrected() -> None:
    timesteps: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        timesteps.append(int(t[0]))
        return x / 2

    sampler = PredictorCorrector(Ancestral(FixedSmall(), 3), corrections=2)
    sampler.sample(Denoiser(network, Linear(9)), randn(2, 1, 2, 2))
    assert timesteps == [9, 5, 5, 5, 1, 1, 1]
    assert sampler.nfe(9) == len(timesteps)


def test_the_reverse_sde_is_refused_under_zero_terminal_snr() -> None:
    denoise = Denoiser(lambda x, t: x, ZeroTerminalSNR(Linear(100)), parameterization=X0())
    with pytest.raises(UserError, match=r"cannot start where alpha_bar_T is 0 .*, got 0 at T=100; sample with DDIM"):
        EulerMaruyama().sample(denoise, randn(1, 1, 2, 2))


@pytest.mark.parametrize(("corrections", "snr"), [(0, 0.16), (1, 0.0), (1, -1.0)])
def test_invalid_corrections_are_refused(corrections: int, snr: float) -> None:
    with pytest.raises(UserError, match="corrections >= 1 and snr > 0"):
        PredictorCorrector(Ancestral(FixedSmall()), corrections, snr)


def test_a_predictor_with_extra_evaluations_is_refused() -> None:
    with pytest.raises(UserError, match="give PredictorCorrector another predictor"):
        PredictorCorrector(Heun(10))


def test_a_denoiser_that_the_predictor_cannot_use_is_refused() -> None:
    flow = Denoiser(lambda x, t: x, RectifiedFlow(20), parameterization=FlowVelocity())
    PredictorCorrector(Ancestral(FixedSmall())).check_denoiser(flow)
    with pytest.raises(UserError, match="MeanFlowSampler needs a network that is given the length of the step"):
        PredictorCorrector(MeanFlowSampler(2)).check_denoiser(flow)
