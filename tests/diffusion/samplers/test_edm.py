"""EDM's sampler against the paper's Algorithm 2, and samplers on continuous paths against diffusers and known data."""

import math
from collections.abc import Iterator

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from helpers.known_data import TWO, randn
from helpers.sampler_checks import SeededNoise
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    EDM,
    X0,
    AdaptiveODE,
    Ancestral,
    ContinuousPath,
    Cosine,
    Denoiser,
    DPMSolverPP,
    EDMHeun,
    Epsilon,
    EulerMaruyama,
    FixedSmall,
    FlowVelocity,
    GaussianPath,
    Heun,
    PosteriorMean,
    PredictorCorrector,
    RectifiedFlow,
    Sampler,
    VarianceExploding,
    Velocity,
    trailing_spacing,
)
from lightning_ddpm.utils.errors import UserError

PATH, FLOW = VarianceExploding(), RectifiedFlow()


def network(x: Tensor, time: Tensor) -> Tensor:
    """Predict arbitrary values of order 1 that differ at every pixel and time."""
    return torch.sin(3 * x.roll(1, -1) + time.view(-1, 1, 1, 1) / 100) + 0.8 * x


def karras_algorithm_2(
    denoise: Denoiser, x: Tensor, steps: int, churn: float, noise: SeededNoise, least: float, most: float
) -> Iterator[Tensor]:
    """Yield x_0 + sigma eps after each step, from D(x; sigma) = E[x_0 | x]; Karras et al. 2022, Algorithm 2."""

    def d(x: Tensor, sigma: float) -> Tensor:
        t = PATH.time_at(torch.tensor(sigma, dtype=torch.float64).atan())
        return denoise(x / math.sqrt(1 + sigma**2), t).x_0

    first, last = 80 ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = [(first + i / (steps - 1) * (last - first)) ** 7 for i in range(steps)] + [0.0]
    for i in range(steps):
        gamma = min(churn / steps, math.sqrt(2) - 1) if least <= sigmas[i] <= most else 0.0
        raised = sigmas[i] * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigmas[i] ** 2) * 1.003 * noise(x)
        slope = (x - d(x, raised)) / raised
        new = x + (sigmas[i + 1] - raised) * slope
        if sigmas[i + 1] > 0:
            new = x + (sigmas[i + 1] - raised) * (slope / 2 + (new - d(new, sigmas[i + 1])) / sigmas[i + 1] / 2)
        x = new
        yield x


@pytest.mark.parametrize("churn", [0.0, 3.0, 100.0])
def test_edmheun_is_algorithm_2(churn: float) -> None:
    denoise, x_T = TWO.denoiser_for(PATH, EDM()), randn(8, 1, 1, 2, dtype=torch.float64)
    sampler = EDMHeun(9, churn=churn, churn_min=0.05, churn_max=50, churn_noise=1.003)
    theirs = list(karras_algorithm_2(denoise, x_T * math.sqrt(1 + 80**2), 9, churn, SeededNoise(), 0.05, 50))
    ours = list(sampler.trajectory(denoise, x_T, SeededNoise()))
    assert len(ours) == 9
    for x, expected, sigma in zip(ours, theirs, sampler.list_sigmas(PATH)[1:], strict=True):
        torch.testing.assert_close(x * math.sqrt(1 + sigma**2), expected, rtol=1e-7, atol=1e-7)


def test_edmheun_calls_the_network_as_often_as_it_states_and_stays_within_the_path() -> None:
    levels: list[float] = []

    def record(x: Tensor, c_noise: Tensor) -> Tensor:
        levels.append(float((4 * c_noise[0]).exp()))
        return network(x, c_noise)

    sampler = EDMHeun(7, churn=7)
    sampler.sample(Denoiser(record, PATH, None, EDM()), randn(2, 1, 2, 2))
    assert len(levels) == sampler.nfe(1000) == 13
    assert 0.00199 < min(levels) < max(levels) < 80.01
    assert EDMHeun().nfe(1000) == 35


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": 1}, "at least 2 steps"), ({"rho": 0}, "0 < rho"), ({"churn": -1}, "churn >= 0")],
)
def test_invalid_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EDMHeun(**arguments)  # type: ignore[arg-type]


def test_ddim_is_diffusers_edm_euler() -> None:
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(10)
    denoise, largest = Denoiser(network, PATH, None, EDM()), 0.0
    x = 80 * randn(2, 3, 4, 4)
    for level, sigma, next_sigma in zip(theirs.timesteps, theirs.sigmas, theirs.sigmas[1:], strict=False):
        output = network(theirs.scale_model_input(x, level), level.expand(2))
        expected = theirs.step(output, level, x).prev_sample
        t, s = (PATH.time_at(each.double().atan()) for each in (sigma, next_sigma))
        ours = DDIM().step(denoise, x * PATH.signal_at(t), t, s, torch.randn_like)  # type: ignore[arg-type]
        largest = max(largest, float(((ours / PATH.signal_at(s) - expected) / expected.abs().max()).abs().max()))
        x = expected
    assert 0.1 < x.std() < 10
    assert largest < 1e-5


def test_dpmsolver_is_diffusers_edm_multistep_solver() -> None:
    theirs = EDMDPMSolverMultistepScheduler()
    theirs.set_timesteps(10)  # 9 divides T - 1 = 999, so that the noise levels of uniform_spacing are exactly these
    x_T = randn(2, 3, 4, 4)
    x = x_T * math.sqrt(1 + 80**2)
    for level in theirs.timesteps:
        output = network(theirs.scale_model_input(x, level), level.expand(2))
        x = theirs.step(output, level, x).prev_sample
    ours = DPMSolverPP(10).sample(Denoiser(network, PATH, None, EDM()), x_T)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5 * float(x.abs().max()))


def test_ddim_is_diffusers_euler_of_flows() -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    x_T = randn(2, 3, 4, 4)
    denoise = Denoiser(network, FLOW, None, FlowVelocity())
    x = x_T
    for ours, t in zip(DDIM(10, spacing=trailing_spacing).trajectory(denoise, x_T), theirs.timesteps, strict=True):
        x = theirs.step(network(x, t.expand(2)), t, x).prev_sample
        s = FLOW.T - round(1000 - float(t)) - 100
        torch.testing.assert_close(ours * FLOW.scale_at(s), x, rtol=0, atol=1e-5)


ON_BOTH = [
    DDIM(100),
    DDIM(150, eta=1.0),
    DPMSolverPP(40),
    DPMSolverPP(100, eta=1.0),
    Heun(25),
    AdaptiveODE(1e-3),
    Ancestral(FixedSmall(), 150),
    PredictorCorrector(DDIM(60), snr=0.1),
]
CASES: list[tuple[ContinuousPath, Sampler]] = [
    *((FLOW, each) for each in ON_BOTH),
    *((PATH, each) for each in (*ON_BOTH, EDMHeun(25), EDMHeun(50, churn=15), EulerMaruyama(400))),
]


@pytest.mark.parametrize(("path", "sampler"), CASES, ids=lambda each: repr(each)[:40])
def test_every_sampler_recovers_the_data_on_every_path(path: ContinuousPath, sampler: Sampler) -> None:
    n, generator = 2000, torch.Generator().manual_seed(1)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    denoise = TWO.denoiser_for(path, FlowVelocity())
    x = sampler.sample(denoise, randn(n, 1, 1, 2, dtype=torch.float64), noise).reshape(n, 2)
    error = 4 * TWO.covariance().diagonal().sqrt() / math.sqrt(n) + 0.01
    assert ((x.mean(0) - TWO.mean()).abs() < error).all()
    assert ((x.T.cov() - TWO.covariance()).abs() < 0.08 * TWO.covariance().diagonal().max()).all()


def test_edmheun_samples_from_a_discrete_chain_too() -> None:
    chain = Cosine(1000)
    denoise, x_T = TWO.denoiser_for(chain, Velocity()), randn(16, 1, 1, 2, dtype=torch.float64)
    truth = AdaptiveODE(1e-6).sample(denoise, x_T)
    errors = [float((EDMHeun(n).sample(denoise, x_T) - truth).abs().mean()) for n in (20, 80)]
    assert errors[1] < errors[0] / 8
    assert errors[1] < 5e-3


FEW = [
    *(DDIM(12), DDIM(12, eta=1.0), DPMSolverPP(8), DPMSolverPP(8, eta=1.0), Heun(6), AdaptiveODE(1e-2)),
    *(Ancestral(FixedSmall(), 12), PredictorCorrector(DDIM(6), snr=0.1)),
]
ALL_PATHS: list[tuple[GaussianPath, Sampler]] = [
    *((FLOW, each) for each in FEW),
    *((path, each) for path in (PATH, Cosine(1000)) for each in (*FEW, EDMHeun(6, churn=2), EulerMaruyama(12))),
]
PREDICTIONS = [FlowVelocity(), Velocity(), X0(), PosteriorMean(), Epsilon(), EDM(0.7)]


@pytest.mark.parametrize(("path", "sampler"), ALL_PATHS, ids=lambda each: repr(each)[:40])
def test_samples_do_not_depend_on_what_an_exact_network_predicts(path: GaussianPath, sampler: Sampler) -> None:
    x_T, found = randn(8, 1, 1, 2, dtype=torch.float64), {}
    for parameterization in PREDICTIONS:
        try:
            denoise = TWO.denoiser_for(path, parameterization)
        except UserError:
            continue
        found[str(parameterization)] = sampler.sample(denoise, x_T, SeededNoise())
    assert len(found) == (4 if path is FLOW else 6 if path is PATH else 5)
    expected = found["FlowVelocity"]
    assert expected.std() > 0.1
    for name, x in found.items():
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
