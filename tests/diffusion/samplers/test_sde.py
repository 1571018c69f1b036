"""The reverse SDE, and every sampler there is on data whose truth is known."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.known_data import ONE, TWO, Mixture, randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    AdaptiveODE,
    Ancestral,
    Denoiser,
    DPMSolverPP,
    EulerMaruyama,
    FixedLarge,
    FixedSmall,
    Heun,
    Linear,
    MarkovSampler,
    PredictorCorrector,
    Sampler,
    ZeroTerminalSNR,
    uniform_spacing,
)
from lightning_ddpm.utils.errors import UserError

SAMPLERS = [
    Ancestral(FixedSmall()),
    Ancestral(FixedLarge()),
    DDIM(400),
    DDIM(400, eta=1.0),
    DPMSolverPP(400),
    DPMSolverPP(400, eta=1.0),
    Heun(60),
    AdaptiveODE(),
    EulerMaruyama(),
    PredictorCorrector(Ancestral(FixedSmall(), 500)),
    PredictorCorrector(EulerMaruyama(400), corrections=2, snr=0.1),
]
N = 10_000


@pytest.mark.parametrize("data", [ONE, TWO], ids=["one Gaussian", "two Gaussians"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_sampler_recovers_the_data(sampler: Sampler, data: Mixture) -> None:
    generator = torch.Generator().manual_seed(1)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    x = sampler.sample(data.denoiser(Linear(1000)), randn(N, 1, 1, 2, dtype=torch.float64), noise).reshape(N, 2)
    # Four standard errors of a Monte Carlo estimate, and what steps of finite length may add.
    error = 4 * data.covariance().diagonal().sqrt() / math.sqrt(N) + 0.01
    assert ((x.mean(0) - data.mean()).abs() < error).all()
    assert ((x.T.cov() - data.covariance()).abs() < 0.05 * data.covariance().diagonal().max()).all()
    left = float((x[:, 0] < -0.2).double().mean())
    if data is TWO:
        assert left == pytest.approx(0.3 + 0.7 * phi((-0.2 - 0.5) / math.sqrt(0.05)), abs=0.02)


def phi(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


def test_euler_maruyama_is_of_the_first_order() -> None:
    schedule, variance = Linear(16_000, beta_min=6e-6, beta_max=1.25e-3), 0.3

    def network(x: Tensor, t: Tensor) -> Tensor:
        return schedule.noise[t[0]] * x / (schedule.alpha_bar[t[0]] * variance + 1 - schedule.alpha_bar[t[0]])

    denoise, errors = Denoiser(network, schedule, clip=None), []
    for steps in (250, 500, 1000, 2000):
        # A step is linear in x_t and in the noise: it takes a variance to a variance, without drawing anything.
        sampler, end = EulerMaruyama(steps), torch.ones(1, 1, 1, 1, dtype=torch.float64)
        times = [*reversed(sampler.spacing(schedule.T, steps)), 0]
        for t, s in pairwise(times):
            one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            of_x = sampler.step(denoise, one, t, s, torch.zeros_like)
            of_noise = sampler.step(denoise, one, t, s, torch.ones_like) - of_x
            end = of_x**2 * end + of_noise**2
        errors.append(abs(float(end) - variance))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1] * 3, abs=0.15)


def test_a_langevin_step_is_song_et_als_for_the_norms_of_noise() -> None:
    schedule = Linear(1000)
    denoise = ONE.denoiser(schedule)
    predictor = Ancestral(FixedSmall(), 50)
    x_t, z = randn(3, 1, 1, 2, dtype=torch.float64), randn(3, 1, 1, 2, seed=1, dtype=torch.float64)
    x_s = predictor.step(denoise, x_t, 500, 480, lambda x: z)
    got = PredictorCorrector(predictor, snr=0.2).step(denoise, x_t, 500, 480, lambda x: z)
    score = -ONE.eps(schedule, x_s, torch.tensor([480])) / (1 - schedule.alpha_bar[480]).sqrt()
    norms = (1 - schedule.alpha_bar[480]).sqrt()  # ||z|| / ||-z / sqrt(1 - alpha_bar)||
    size = 2 * (1 - schedule.beta[480]) * (0.2 * norms) ** 2
    torch.testing.assert_close(got, x_s + size * score + (2 * size).sqrt() * z)


def test_langevin_steps_leave_the_distribution_as_it_is() -> None:
    schedule, generator = Linear(1000), torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    class Stay(MarkovSampler):
        steps, spacing = 2, staticmethod(uniform_spacing)

        def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: object) -> Tensor:
            return x_t

    variance = schedule.alpha_bar[300] * ONE.covariance() + (1 - schedule.alpha_bar[300]) * torch.eye(2)
    mean = schedule.signal[300] * ONE.mean()
    x = (mean + noise(torch.empty(N, 2, dtype=torch.float64)) @ torch.linalg.cholesky(variance).T).reshape(N, 1, 1, 2)
    got = PredictorCorrector(Stay(), corrections=50).step(ONE.denoiser(schedule), x, 301, 300, noise).reshape(N, 2)
    assert not torch.allclose(got, x.reshape(N, 2), atol=0.1)
    torch.testing.assert_close(got.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(got.T.cov(), variance, rtol=0, atol=0.04)


def test_the_last_step_is_not_corrected_and_every_other_is_as_often_as_asked() -> None:
    asked: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return x / 2

    sampler = PredictorCorrector(Ancestral(FixedSmall(), 3), corrections=2)
    sampler.sample(Denoiser(network, Linear(9)), randn(2, 1, 2, 2))
    assert asked == [9, 5, 5, 5, 1, 1, 1]
    assert sampler.nfe(9) == len(asked)


def test_the_reverse_sde_is_refused_where_it_has_no_start() -> None:
    denoise = Denoiser(lambda x, t: x, ZeroTerminalSNR(Linear(100)), parameterization=X0())
    with pytest.raises(UserError, match=r"no start where alpha_bar_T is 0, .*, got 0 at T=100; sample with DDIM"):
        EulerMaruyama().sample(denoise, randn(1, 1, 2, 2))


@pytest.mark.parametrize(("corrections", "snr"), [(0, 0.16), (1, 0.0), (1, -1.0)])
def test_corrections_that_are_none_are_refused(corrections: int, snr: float) -> None:
    with pytest.raises(UserError, match="corrections >= 1 and snr > 0"):
        PredictorCorrector(Ancestral(FixedSmall()), corrections, snr)


def test_a_predictor_that_looks_back_is_refused() -> None:
    with pytest.raises(UserError, match="give PredictorCorrector another predictor"):
        PredictorCorrector(Heun(10))
