"""Properties of all samplers: their network evaluations, their last step, and the data that they recover."""

import math
import re
import textwrap
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers.known_data import ONE, TWO, Mixture, randn
from helpers.sampler_checks import (
    LINEAR,
    VARIANCES,
    NetworkRecorder,
    SeededNoise,
    compute_moments,
    gaussian_denoiser,
    linear_schedule,
    network,
    network_with_variance,
    with_and_without_clipping,
)
from torch import Tensor

from lightning_ddpm import diffusion
from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    AdaptiveODE,
    AlphaBarFunction,
    Ancestral,
    Cosine,
    Denoiser,
    DPMSolverPP,
    EulerMaruyama,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    Heun,
    Linear,
    NoiseSchedule,
    Parameterization,
    PosteriorMean,
    PredictorCorrector,
    Quadratic,
    Sampler,
    Velocity,
    ZeroTerminalSNR,
    elbo,
    quadratic_spacing,
    trailing_spacing,
    uniform_spacing,
)
from lightning_ddpm.diffusion.samplers import base
from lightning_ddpm.utils.errors import UserError

SAMPLERS = [
    Ancestral(FixedSmall()),
    Ancestral(FixedLarge()),
    Ancestral(FixedSmall(), steps=7),
    Ancestral(FixedLarge(), steps=20, spacing=quadratic_spacing),
    DDIM(steps=None),
    DDIM(steps=20, eta=0.5),
    DDIM(steps=1),
    DDIM(steps=20, eta=1, spacing=quadratic_spacing),
]

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)

ALL_SAMPLERS = [
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


# ---- the steps of a chain --------------------------------------------------------------------------------------------


@every_sampler
def test_the_network_is_called_nfe_times_at_decreasing_timesteps(sampler: Sampler) -> None:
    recorder = NetworkRecorder()
    images = list(sampler.trajectory(Denoiser(recorder, Linear(100)), randn(3, 1, 4, 4)))
    assert len(images) == len(recorder.steps) == sampler.nfe(100)
    steps = [step.tolist() for step in recorder.steps]
    assert all(step[0] == step[1] == step[2] for step in steps)
    assert steps[0] == [100, 100, 100]
    assert all(later[0] < earlier[0] for earlier, later in pairwise(steps))


@pytest.mark.parametrize("sampler", [DPMSolverPP(10), DPMSolverPP(10, eta=1.0), Heun(10), Heun(None)], ids=repr)
def test_the_network_is_called_nfe_times_by_second_order_solvers(sampler: Sampler) -> None:
    calls = 0

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x / 2

    sampler.sample(Denoiser(network, Linear(50)), randn(2, 1, 2, 2))
    assert calls == sampler.nfe(50)
    assert Heun(10).nfe(50) == 19
    assert AdaptiveODE().nfe(50) is None


def test_the_network_is_called_at_the_timesteps_of_the_spacing() -> None:
    for spacing in (uniform_spacing, quadratic_spacing):
        recorder = NetworkRecorder()
        DDIM(10, spacing=spacing).sample(Denoiser(recorder, LINEAR), randn(1, 1, 4, 4))
        assert [int(step) for step in recorder.steps] == spacing(1000, 10)[::-1]


@every_sampler
def test_the_last_step_adds_no_noise(sampler: Sampler) -> None:
    inputs: list[Tensor] = []

    def noise(like: Tensor) -> Tensor:
        inputs.append(like)
        return torch.randn_like(like)

    sampler.sample(Denoiser(network, Linear(100)), randn(1, 1, 4, 4), noise)
    is_deterministic = isinstance(sampler, DDIM) and sampler.eta == 0
    assert len(inputs) == (0 if is_deterministic else sampler.nfe(100) - 1)


@every_sampler
def test_the_last_image_is_the_last_predicted_x_0(sampler: Sampler) -> None:
    denoise = Denoiser(network, Linear(100))
    images = list(sampler.trajectory(denoise, randn(2, 1, 4, 4, dtype=torch.float64), SeededNoise(1)))
    previous = images[-2] if len(images) > 1 else randn(2, 1, 4, 4, dtype=torch.float64)
    last = 100 if len(images) == 1 else 1
    torch.testing.assert_close(images[-1], denoise(previous, last).x_0, rtol=0, atol=1e-12)
    assert images[-1].abs().max() <= 1 + 1e-12


def test_sample_is_the_end_of_the_trajectory() -> None:
    denoise, x_T, sampler = Denoiser(network, Linear(100)), randn(2, 1, 4, 4), Ancestral(FixedSmall())
    *_, last = sampler.trajectory(denoise, x_T, SeededNoise(1))
    assert torch.equal(sampler.sample(denoise, x_T, SeededNoise(1)), last)


def test_the_chain_keeps_the_images_precision_for_a_network_of_lower_precision() -> None:
    def low_precision(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t).bfloat16()

    for x in Ancestral(FixedSmall(), 5).trajectory(Denoiser(low_precision, LINEAR), randn(1, 1, 4, 4)):
        assert x.dtype == torch.float32


@pytest.mark.parametrize("steps", [0, -1, 101])
@pytest.mark.parametrize("kind", [DDIM, lambda steps: Ancestral(FixedSmall(), steps)], ids=["DDIM", "Ancestral"])
def test_an_invalid_number_of_steps_is_refused(kind: Callable[[int], Sampler], steps: int) -> None:
    with pytest.raises(UserError, match=re.escape("must lie in 1..100")):
        kind(steps).sample(Denoiser(network, Linear(100)), randn(1, 1, 4, 4))


@pytest.mark.parametrize("times", [[], [3, 2, 10], [0, 4, 10], [2, 2, 10], [2, 4, 9], [2, 4, 11], [4, 10]], ids=str)
def test_an_invalid_custom_spacing_is_refused(times: list[int]) -> None:
    def custom(T: int, steps: int) -> list[int]:
        return times

    with pytest.raises(UserError, match=r"spacing of 3 steps must return 3 increasing.*T=10.*from custom"):
        DDIM(3, spacing=custom).sample(Denoiser(network, Linear(10)), randn(1, 1, 2, 2))


def test_repr_shows_the_settings() -> None:
    assert repr(DDIM(10, 0.5, quadratic_spacing)) == "DDIM(steps=10, eta=0.5, spacing=quadratic_spacing)"
    assert repr(Ancestral(FixedLarge())) == "Ancestral(variance=FixedLarge, steps=None, spacing=uniform_spacing)"


def test_the_example_in_the_docstring_is_ddim() -> None:
    assert base.__doc__ is not None
    example = base.__doc__.split("::\n\n")[1].split("\n\nIn a config")[0]
    namespace = {**vars(diffusion), "Tensor": Tensor}
    exec(textwrap.dedent(example), namespace)
    denoise, x_T = Denoiser(network, LINEAR), randn(2, 3, 4, 4)
    sampler = namespace["MySampler"](20)
    torch.testing.assert_close(sampler.sample(denoise, x_T), DDIM(20).sample(denoise, x_T))
    assert sampler.nfe(1000) == 20
    assert repr(sampler) == "MySampler(steps=20, spacing=uniform_spacing)"


# ---- data with known distributions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [ONE, TWO], ids=["one Gaussian", "two Gaussians"])
@pytest.mark.parametrize("sampler", ALL_SAMPLERS, ids=repr)
def test_every_sampler_recovers_the_data(sampler: Sampler, data: Mixture) -> None:
    generator = torch.Generator().manual_seed(1)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    x = sampler.sample(data.denoiser(Linear(1000)), randn(N, 1, 1, 2, dtype=torch.float64), noise).reshape(N, 2)
    # Four standard errors of a Monte Carlo estimate, and the error of steps of finite length.
    error = 4 * data.covariance().diagonal().sqrt() / math.sqrt(N) + 0.01
    assert ((x.mean(0) - data.mean()).abs() < error).all()
    assert ((x.T.cov() - data.covariance()).abs() < 0.05 * data.covariance().diagonal().max()).all()
    share_below = float((x[:, 0] < -0.2).double().mean())
    if data is TWO:
        assert share_below == pytest.approx(0.3 + 0.7 * normal_cdf((-0.2 - 0.5) / math.sqrt(0.05)), abs=0.02)


def normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


@pytest.mark.parametrize(
    ("make", "error"),
    [
        # the remaining error is that of Gaussian steps and of x_T ~ N(0, 1), which is not exactly q(x_T)
        (lambda T: Ancestral(FixedSmall()), 0.02),
        (lambda T: Ancestral(FixedLarge()), 0.005),
        (lambda T: Ancestral(FixedSmall(), T // 2, quadratic_spacing), 0.02),
        (lambda T: Ancestral(FixedLarge(), T // 2), 0.01),
        (lambda T: DDIM(None), 0.01),
        (lambda T: DDIM(T // 2), 0.02),
        (lambda T: DDIM(T // 2, spacing=quadratic_spacing), 0.01),
        (lambda T: DDIM(None, 0.5), 0.01),
        (lambda T: DDIM(T // 2, 1.0, quadratic_spacing), 0.02),
    ],
    ids=["small", "large", "small_half", "large_half", "ddim", "ddim_half", "ddim_quadratic", "eta_0.5", "eta_1"],
)
def test_the_error_on_gaussian_data_falls_with_the_number_of_steps(
    make: Callable[[int], Sampler], error: float
) -> None:
    mu, s = 0.3, 0.5
    (coarse_mean, low_precision), (mean, variance) = (
        compute_moments(make(T), gaussian_denoiser(linear_schedule(T), mu, s)) for T in (250, 1000)
    )
    assert mean == pytest.approx(mu, abs=0.001)
    assert variance == pytest.approx(s**2, rel=error)
    assert coarse_mean == pytest.approx(mu, abs=0.001)
    assert 2.5 < abs(low_precision - s**2) / abs(variance - s**2) < 6


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_constant_data_are_recovered_exactly_with_any_number_of_steps(sampler: Sampler) -> None:
    mean, variance = compute_moments(sampler, gaussian_denoiser(Quadratic(100), 0.3, 0.0))
    assert mean == pytest.approx(0.3, abs=1e-12)
    assert variance == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("sampler", [Ancestral(FixedLarge(), 100), DDIM(100), DDIM(100, 1.0)], ids=repr)
def test_gaussian_data_are_recovered_from_random_noise(sampler: Sampler) -> None:
    n, denoise = 50_000, gaussian_denoiser(LINEAR, 0.3, 0.5)
    mean, variance = compute_moments(sampler, denoise)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_0 = sampler.sample(denoise, torch.randn(n, 1, 1, 1))
    assert x_0.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert x_0.var().item() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", [Linear(1000), Cosine(1000), ZeroTerminalSNR(Linear(1000))], ids=repr)
@pytest.mark.parametrize("make", [DDIM, DPMSolverPP, Heun], ids=lambda make: make.__name__)
def test_samples_with_few_steps_stay_bounded(
    make: Callable[[int], Sampler], schedule: NoiseSchedule, steps: int
) -> None:
    """Heun's method on v as a function of the angle diverged when its second to last step was long."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = schedule.signal[t[0]], schedule.noise[t[0]]
        x_0 = signal * 0.09 / (signal**2 * 0.09 + noise**2) * x_t  # of data of standard deviation 0.3
        return signal * (x_t - signal * x_0) / noise - noise * x_0

    denoise = Denoiser(network, schedule, clip=None, parameterization=Velocity())
    x_0 = make(steps).sample(denoise, randn(2000, 1, 1, 1, dtype=torch.float64))
    assert float(x_0.std()) < 0.45


# ---- zero terminal SNR -----------------------------------------------------------------------------------------------


BASE_SCHEDULES = [
    Linear(100, 1e-3, 0.2),
    Cosine(100),
    ExplicitBetas([0.3, 1e-6, 0.9]),
    AlphaBarFunction(lambda time: 1 - time, 50),
]

ZERO_TERMINAL_SNR = [ZeroTerminalSNR(each) for each in BASE_SCHEDULES]


@pytest.mark.parametrize("schedule", ZERO_TERMINAL_SNR, ids=lambda each: f"T={each.T}")
@pytest.mark.parametrize("parameterization", [X0(), Velocity(), PosteriorMean()], ids=repr)
@with_and_without_clipping
def test_samples_and_elbo_are_finite_under_zero_terminal_snr(
    clip: float | None, parameterization: Parameterization, schedule: NoiseSchedule
) -> None:
    denoise = Denoiser(network_with_variance, schedule, clip, parameterization)
    samplers: list[Sampler] = []
    for steps in (None, 3, 1):
        samplers += [Ancestral(each, steps) for each in VARIANCES.values()]
        samplers += [DDIM(steps, eta, spacing) for eta in (0, 1) for spacing in (uniform_spacing, trailing_spacing)]
    for sampler in samplers:
        images = sampler.trajectory(denoise, randn(2, 1, 2, 2), SeededNoise(1))
        assert all(x.isfinite().all() for x in images), sampler
    for variance in VARIANCES.values():
        terms = elbo(denoise, variance, randn(2, 1, 2, 2).clamp(-1, 1), SeededNoise(2))
        assert (terms.prior == 0).all()  # q(x_T | x_0) is N(0, I)
        assert terms.terms.isfinite().all()
