"""Samplers against diffusers', against Gaussian data whose noise is known in closed form, and against each other."""

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from helpers.known_data import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    AlphaBarFunction,
    Ancestral,
    Cosine,
    Denoised,
    Denoiser,
    Epsilon,
    ExplicitBetas,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    Linear,
    NoiseSchedule,
    Parameterization,
    PosteriorMean,
    Quadratic,
    Sampler,
    Velocity,
    ZeroTerminalSNR,
    elbo,
    posterior_variance,
    q_posterior,
    quadratic_spacing,
    trailing_spacing,
    transition_variance,
    uniform_spacing,
)
from lightning_ddpm.utils.errors import UserError

LINEAR = Linear(1000)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Some noise prediction of order 1, different at every pixel and every step."""
    return torch.sin(3 * x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 100) + 0.8 * x_t


def recorded_noise(seed: int) -> Callable[[Tensor], Tensor]:
    """Noise in the order that diffusers draws it from ``torch.Generator().manual_seed(seed)``."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


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
    Ancestral(FixedLarge(), steps=20, spacing=quadratic_spacing),
    DDIM(steps=None),
    DDIM(steps=20, eta=0.5),
    DDIM(steps=1),
    DDIM(steps=20, eta=1, spacing=quadratic_spacing),
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


# ---- against diffusers -------------------------------------------------------------------------------------------

PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": Velocity()}
VARIANCES = {"fixed_small": FixedSmall(), "fixed_large": FixedLarge(), "learned_range": LearnedRange()}
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
clipped_or_not = pytest.mark.parametrize("clip", [None, 1.0])


def exact(theirs: DDPMScheduler | DDIMScheduler) -> DDPMScheduler | DDIMScheduler:
    """diffusers' scheduler with its products in float64: in float32, 1 - alpha_bar_2 has four digits."""
    betas = theirs.betas.double()
    if theirs.config.rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    theirs.alphas_cumprod = (1 - betas).cumprod(0)
    return theirs


def with_variance(x_t: Tensor, t: Tensor) -> Tensor:
    """Some prediction, and v in [-1, 1], different at every pixel and every step."""
    return torch.cat([network(x_t, t), torch.cos(50 * x_t + t.view(-1, 1, 1, 1))], dim=1)


def largest_difference(
    sampler: Sampler, denoise: Denoiser, times: list[int], their_step: Callable[[Tensor, int, Tensor], Tensor]
) -> float:
    """Over all steps of our chain: how far their single step from our x_t ends from ours."""
    x, largest = randn(2, 3, 4, 4), 0.0
    for t, ours in zip(reversed(times), sampler.trajectory(denoise, x, recorded_noise(1)), strict=True):
        theirs = their_step(denoise.network(x, torch.tensor([t, t])), t - 1, x)
        largest, x = max(largest, (theirs - ours).abs().max().item()), ours
    assert 0.1 < x.std() < 10
    return largest


@clipped_or_not
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [1000, 50])
@every_prediction
def test_every_ancestral_step_is_diffusers(prediction: str, steps: int, variance: str, clip: float | None) -> None:
    theirs = exact(
        DDPMScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            variance_type=variance,
            prediction_type=prediction,
            clip_sample=clip is not None,
            timestep_spacing="linspace",
        )
    )
    theirs.set_timesteps(steps)
    times = (theirs.timesteps.flip(0) + 1).tolist()
    generator = torch.Generator().manual_seed(1)

    def step(output: Tensor, t: int, x: Tensor) -> Tensor:
        return theirs.step(output, t, x, generator=generator).prev_sample

    denoise = Denoiser(with_variance if variance == "learned_range" else network, LINEAR, clip, PREDICTIONS[prediction])
    assert largest_difference(Ancestral(VARIANCES[variance], steps), denoise, times, step) < 1e-5


@cache
def begun(t: int) -> ExplicitBetas:
    """The first t steps of Ho et al.'s."""
    return ExplicitBetas(LINEAR.beta[1 : t + 1].tolist())


def single(s: int, t: int, eta: float, denoise: Denoiser, x: Tensor, noise: Tensor) -> Tensor:
    """Our step from t to any s: the first of a chain that starts in t."""
    times = [s, t] if s > 0 else [t]
    sampler = DDIM(len(times), eta, lambda T, steps: times)
    from_t = Denoiser(denoise.network, begun(t), denoise.clip, denoise.parameterization)
    return next(sampler.trajectory(from_t, x, lambda like: noise))


@clipped_or_not
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1000, 50])
@every_prediction
def test_every_ddim_step_is_diffusers_whatever_the_spacing(
    prediction: str, steps: int, eta: float, clip: float | None
) -> None:
    # Theirs goes T // steps back from any t: with steps at all 1000 t, every step of every spacing is among them.
    theirs = exact(
        DDIMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type=prediction, clip_sample=clip is not None)
    )
    theirs.set_timesteps(steps)
    denoise = Denoiser(network, LINEAR, clip, PREDICTIONS[prediction])
    x, noise, largest = randn(2, 3, 2, 2), randn(2, 3, 2, 2, seed=1), 0.0
    rederived = clip is not None
    for t in range(1, 1001):
        output = network(x, torch.tensor([t, t]))
        step = theirs.step(output, t - 1, x, eta, use_clipped_model_output=rederived, variance_noise=noise)
        before = max(t - 1000 // steps, 0)
        # theirs adds noise at the last step too
        mine = single(before, t, eta, denoise, x, noise)
        last = eta * posterior_variance(LINEAR, before, t).sqrt().float() * noise if before == 0 else 0
        largest = max(largest, (step.prev_sample - mine - last).abs().max().item())
    assert largest < 1e-5


@pytest.mark.parametrize(("steps", "eta"), [(10, 0.0), (10, 0.3), (10, 1.0), (50, 0.0), (50, 1.0)])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@clipped_or_not
def test_every_ddim_chain_is_diffusers(spacing: str, steps: int, eta: float, clip: float | None) -> None:
    theirs = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=clip is not None, timestep_spacing=spacing, set_alpha_to_one=True
    )
    exact(theirs).set_timesteps(steps)
    times = (theirs.timesteps.flip(0) + 1).tolist()
    if spacing == "trailing":
        assert times == trailing_spacing(1000, steps)
    # theirs may begin before T, as ``leading`` does: to us a schedule of fewer betas
    schedule = begun(times[-1])
    generator = torch.Generator().manual_seed(1)

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        stepped = theirs.step(eps, t, x, eta=eta, use_clipped_model_output=clip is not None, generator=generator)
        return stepped.prev_sample

    sampler = DDIM(steps, eta, spacing=lambda T, steps: times)
    assert largest_difference(sampler, Denoiser(network, schedule, clip), times, step) < 1e-5


@clipped_or_not
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_every_step_under_zero_terminal_snr_is_diffusers(prediction: str, clip: float | None) -> None:
    schedule = ZeroTerminalSNR(LINEAR)
    settings = {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    settings |= {"prediction_type": prediction, "clip_sample": clip is not None}
    ddpm, ddim = (exact(kind(**settings)) for kind in (DDPMScheduler, DDIMScheduler))
    generator = torch.Generator().manual_seed(1)
    denoise = Denoiser(network, schedule, clip, PREDICTIONS[prediction])

    def ancestral(output: Tensor, t: int, x: Tensor) -> Tensor:
        return ddpm.step(output, t, x, generator=generator).prev_sample

    def implicit(output: Tensor, t: int, x: Tensor) -> Tensor:
        return ddim.step(output, t, x, use_clipped_model_output=clip is not None).prev_sample

    assert largest_difference(Ancestral(FixedSmall()), denoise, list(range(1, 1001)), ancestral) < 1e-5
    ddim.set_timesteps(20)
    assert largest_difference(DDIM(20, spacing=trailing_spacing), denoise, trailing_spacing(1000, 20), implicit) < 1e-5


@pytest.mark.parametrize(("spacing", "name"), [(uniform_spacing, "linspace"), (trailing_spacing, "trailing")])
def test_spacings_are_diffusers(spacing: Callable[[int, int], list[int]], name: str) -> None:
    compared = 0
    for steps in range(2, 1001):  # one step alone begins at 1 in their linspace
        theirs = DDIMScheduler(timestep_spacing=name)
        theirs.set_timesteps(steps)
        times = (theirs.timesteps.flip(0) + 1).tolist()
        if len(times) != steps:  # theirs, of floating-point numbers, has sometimes one step too many
            continue
        ours, compared = spacing(1000, steps), compared + 1
        for i, (mine, other) in enumerate(zip(ours, times, strict=True)):
            # a half may be rounded either way
            twice = 2 * 999 * i / (steps - 1) if name == "linspace" else 2 * 1000 * (i + 1) / steps
            assert mine == other or (abs(mine - other) == 1 and twice % 2 == 1)
    assert compared > 900


# ---- against each other, and against the formulas ----------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, Cosine(100), Quadratic(100)], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    ("steps", "spacing"), [(None, uniform_spacing), (20, uniform_spacing), (20, quadratic_spacing)]
)
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
    expected_noise, times = recorded_noise(1), uniform_spacing(1000, 10)
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


def chain(T: int) -> Linear:
    """T steps from data to the same noise: alpha_bar_T is 4e-5 for every T, as Ho's."""
    return Linear(T, 0.1 / T, 20 / T)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        # what remains is the error of a Gaussian step, and that of x_T ~ N(0, 1), which is not quite q(x_T)
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
def test_gaussian_data_are_recovered_the_better_the_more_steps(make: Callable[[int], Sampler], error: float) -> None:
    mu, s = 0.3, 0.5
    (coarse_mean, coarse), (mean, variance) = (moments(make(T), analytic(chain(T), mu, s)) for T in (250, 1000))
    assert mean == pytest.approx(mu, abs=0.001)
    assert variance == pytest.approx(s**2, rel=error)
    assert coarse_mean == pytest.approx(mu, abs=0.001)
    assert 2.5 < abs(coarse - s**2) / abs(variance - s**2) < 6


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_data_of_a_single_value_are_recovered_exactly_by_any_number_of_steps(sampler: Sampler) -> None:
    mean, variance = moments(sampler, analytic(Quadratic(100), 0.3, 0.0))
    assert mean == pytest.approx(0.3, abs=1e-12)
    assert variance == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("steps", [5, 50, None])
def test_the_large_variance_is_exact_for_standard_normal_data_with_few_steps_too(steps: int | None) -> None:
    # what is missing is the noise of the last step, from t = 1
    _, variance = moments(Ancestral(FixedLarge(), steps), analytic(LINEAR, 0.0, 1.0))
    assert variance == pytest.approx(1 - 1e-4, rel=1e-10)


@pytest.mark.parametrize("steps", [5, 50])
def test_the_small_variance_falls_short_for_standard_normal_data_with_few_steps(steps: int) -> None:
    _, variance = moments(Ancestral(FixedSmall(), steps), analytic(LINEAR, 0.0, 1.0))
    assert variance < 0.95


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing])
def test_ddim_of_standard_normal_data_turns_by_the_angle_of_each_step(
    spacing: Callable[[int, int], list[int]],
) -> None:
    # x_0^ = signal_t x_t and eps^ = noise_t x_t, so x_s = cos(angle_t - angle_s) x_t with noise = sin(angle)
    angle = torch.asin(LINEAR.noise)[[0, *spacing(1000, 10)]]
    _, variance = moments(DDIM(10, 0.0, spacing), analytic(LINEAR, 0.0, 1.0))
    assert variance == pytest.approx(angle.diff().cos().square().prod().item(), rel=1e-10)


@pytest.mark.parametrize("sampler", [Ancestral(FixedLarge(), 100), DDIM(100), DDIM(100, 1.0)], ids=repr)
def test_gaussian_data_are_recovered_from_random_noise(sampler: Sampler) -> None:
    n, denoise = 50_000, analytic(LINEAR, 0.3, 0.5)
    mean, variance = moments(sampler, denoise)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_0 = sampler.sample(denoise, torch.randn(n, 1, 1, 1))
    assert x_0.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert x_0.var().item() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)


# ---- zero terminal SNR -------------------------------------------------------------------------------------------

BEFORE = [
    Linear(100, 1e-3, 0.2),
    Cosine(100),
    ExplicitBetas([0.3, 1e-6, 0.9]),
    AlphaBarFunction(lambda time: 1 - time, 50),
]
ZERO = [ZeroTerminalSNR(each) for each in BEFORE]


@pytest.mark.parametrize("schedule", ZERO, ids=lambda each: f"T={each.T}")
@pytest.mark.parametrize("prediction", [X0(), Velocity(), PosteriorMean()], ids=repr)
@clipped_or_not
def test_images_and_bounds_are_finite_without_any_signal_at_T(
    clip: float | None, prediction: Parameterization, schedule: NoiseSchedule
) -> None:
    denoise = Denoiser(with_variance, schedule, clip, prediction)
    samplers: list[Sampler] = []
    for steps in (None, 3, 1):
        samplers += [Ancestral(each, steps) for each in VARIANCES.values()]
        samplers += [DDIM(steps, eta, spacing) for eta in (0, 1) for spacing in (uniform_spacing, trailing_spacing)]
    for sampler in samplers:
        images = sampler.trajectory(denoise, randn(2, 1, 2, 2), recorded_noise(1))
        assert all(x.isfinite().all() for x in images), sampler
    for variance in VARIANCES.values():
        terms = elbo(denoise, variance, randn(2, 1, 2, 2).clamp(-1, 1), recorded_noise(2))
        assert (terms.prior == 0).all()  # q(x_T | x_0) is N(0, I)
        assert terms.terms.isfinite().all()


def test_the_mean_of_the_data_is_met_only_where_training_reached_pure_noise() -> None:
    # Lin et al. 2023, section 3: x_T ~ N(0, I) is then what training saw at T, and one step gives E[x_0] exactly
    schedule = ZeroTerminalSNR(Linear(100, 1e-3, 0.02))

    def v(x_t: Tensor, t: Tensor) -> Tensor:  # E[v | x_t] of x_0 ~ N(0.8, 0.1^2)
        signal, noise = (table[t].view(-1, 1, 1, 1) for table in (schedule.signal, schedule.noise))
        x_0 = 0.8 + 0.01 * signal * (x_t - 0.8 * signal) / (0.01 * signal**2 + noise**2)
        return Velocity().target(schedule, x_0, (x_t - signal * x_0) / noise, t)

    denoise = Denoiser(v, schedule, None, Velocity())
    x_T = randn(2, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(DDIM(1).sample(denoise, x_T), torch.full_like(x_T, 0.8), rtol=0, atol=1e-12)
    mean, _ = moments(DDIM(100), denoise)
    assert mean == pytest.approx(0.8, abs=1e-12)
    left, _ = moments(DDIM(100), analytic(Linear(100, 1e-3, 0.02), 0.8, 0.1))
    assert left < 0.78


# ---- what a chain is made of -------------------------------------------------------------------------------------


@every_sampler
def test_the_network_is_asked_as_often_as_is_announced_from_T_down(sampler: Sampler) -> None:
    asked = Recorder()
    images = list(sampler.trajectory(Denoiser(asked, Linear(100)), randn(3, 1, 4, 4)))
    assert len(images) == len(asked.steps) == sampler.nfe(100)
    steps = [step.tolist() for step in asked.steps]
    assert all(step[0] == step[1] == step[2] for step in steps)
    assert steps[0] == [100, 100, 100]
    assert all(later[0] < earlier[0] for earlier, later in pairwise(steps))


@every_sampler
def test_no_noise_is_drawn_at_the_last_step(sampler: Sampler) -> None:
    drawn: list[Tensor] = []

    def noise(like: Tensor) -> Tensor:
        drawn.append(like)
        return torch.randn_like(like)

    sampler.sample(Denoiser(network, Linear(100)), randn(1, 1, 4, 4), noise)
    silent = isinstance(sampler, DDIM) and sampler.eta == 0
    assert len(drawn) == (0 if silent else sampler.nfe(100) - 1)


@every_sampler
def test_the_last_image_is_the_networks_last_guess_at_x_0(sampler: Sampler) -> None:
    denoise = Denoiser(network, Linear(100))
    images = list(sampler.trajectory(denoise, randn(2, 1, 4, 4, dtype=torch.float64), recorded_noise(1)))
    before = images[-2] if len(images) > 1 else randn(2, 1, 4, 4, dtype=torch.float64)
    last = 100 if len(images) == 1 else 1
    torch.testing.assert_close(images[-1], denoise(before, last).x_0, rtol=0, atol=1e-12)
    assert images[-1].abs().max() <= 1 + 1e-12


def test_sample_is_the_end_of_the_trajectory() -> None:
    denoise, x_T, sampler = Denoiser(network, Linear(100)), randn(2, 1, 4, 4), Ancestral(FixedSmall())
    *_, last = sampler.trajectory(denoise, x_T, recorded_noise(1))
    assert torch.equal(sampler.sample(denoise, x_T, recorded_noise(1)), last)


def test_skipping_samplers_hand_the_network_the_steps_of_the_spacing() -> None:
    for spacing in (uniform_spacing, quadratic_spacing):
        asked = Recorder()
        DDIM(10, spacing=spacing).sample(Denoiser(asked, LINEAR), randn(1, 1, 4, 4))
        assert [int(step) for step in asked.steps] == spacing(1000, 10)[::-1]


@pytest.mark.parametrize("steps", [0, -1, 101])
@pytest.mark.parametrize("kind", [DDIM, lambda steps: Ancestral(FixedSmall(), steps)], ids=["DDIM", "Ancestral"])
def test_an_impossible_number_of_steps_is_refused(kind: Callable[[int], Sampler], steps: int) -> None:
    with pytest.raises(UserError, match=re.escape("must lie in 1..100")):
        kind(steps).sample(Denoiser(network, Linear(100)), randn(1, 1, 4, 4))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_1_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match=r"eta must lie in \[0, 1\]"):
        DDIM(10, eta)


# ---- denoiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1.0, 0.25])
@pytest.mark.parametrize("t", [1, 2, 300, 1000])
def test_the_two_halves_of_a_guess_make_x_t(clip: float | None, t: int) -> None:
    x_t = 2 * randn(2, 3, 4, 4, dtype=torch.float64)
    x_0, eps = Denoiser(network, LINEAR, clip)(x_t, t)
    torch.testing.assert_close(LINEAR.signal[t] * x_0 + LINEAR.noise[t] * eps, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_x_0_is_clipped_and_nothing_inside_the_range_is_touched(clip: float) -> None:
    x_t = 2 * randn(2, 3, 4, 4, dtype=torch.float64)
    free, clipped = Denoiser(network, LINEAR, None)(x_t, 300), Denoiser(network, LINEAR, clip)(x_t, 300)
    outside = free.x_0.abs() > clip
    assert outside.any()
    assert not outside.all()
    assert torch.equal(clipped.x_0[outside], clip * free.x_0[outside].sign())
    assert torch.equal(clipped.x_0[~outside], free.x_0[~outside])
    torch.testing.assert_close(clipped.eps[~outside], free.eps[~outside], rtol=0, atol=1e-12)
    assert ((clipped.eps - free.eps)[outside].abs() > 1e-6).all()


def test_without_clipping_eps_is_the_networks() -> None:
    x_t = randn(2, 3, 4, 4)
    guess = Denoiser(network, LINEAR, None)(x_t, 300)
    assert isinstance(guess, Denoised)
    assert torch.equal(guess.eps, network(x_t, torch.tensor([300, 300])))


def test_the_chain_stays_in_the_images_precision_when_the_network_runs_in_another() -> None:
    def coarse(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t).bfloat16()

    for x in Ancestral(FixedSmall(), 5).trajectory(Denoiser(coarse, LINEAR), randn(1, 1, 4, 4)):
        assert x.dtype == torch.float32


# ---- spacing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@given(data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_spacing_visits_T_rises_and_counts_exactly(
    spacing: Callable[[int, int], list[int]], data: st.DataObject
) -> None:
    T = data.draw(st.integers(1, 3000))
    times = spacing(T, data.draw(st.integers(1, T)))
    assert times[-1] == T
    assert times[0] >= 1
    assert all(earlier < later for earlier, later in pairwise(times))


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@pytest.mark.parametrize("T", range(1, 41))
def test_every_number_of_steps_is_met_exactly(spacing: Callable[[int, int], list[int]], T: int) -> None:
    for steps in range(1, T + 1):
        times = spacing(T, steps)
        assert len(set(times)) == len(times) == steps
        assert times == sorted(times)
        assert times[-1] == T
    assert times == list(range(1, T + 1))


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@pytest.mark.parametrize("steps", [0, -3, 11])
def test_spacing_refuses_more_steps_than_there_are_and_fewer_than_one(
    spacing: Callable[[int, int], list[int]], steps: int
) -> None:
    with pytest.raises(UserError, match=re.escape("must lie in 1..10 (the schedule's T)")):
        spacing(10, steps)


@pytest.mark.parametrize("times", [[], [3, 2, 10], [0, 4, 10], [2, 2, 10], [2, 4, 9], [2, 4, 11], [4, 10]], ids=str)
def test_a_spacing_of_the_users_that_does_not_keep_its_word_is_refused(times: list[int]) -> None:
    def mine(T: int, steps: int) -> list[int]:
        return times

    with pytest.raises(UserError, match=r"spacing of 3 steps must give as many, increasing.*T=10.*from mine"):
        DDIM(3, spacing=mine).sample(Denoiser(network, Linear(10)), randn(1, 1, 2, 2))


def test_trailing_gaps_are_equal_from_0() -> None:
    assert trailing_spacing(1000, 4) == [250, 500, 750, 1000]
    assert trailing_spacing(10, 3) == [3, 7, 10]
    assert trailing_spacing(1000, 1) == [1000]


def test_uniform_gaps_are_equal_and_quadratic_gaps_grow() -> None:
    assert uniform_spacing(1000, 4) == [1, 334, 667, 1000]
    # square roots at 1, 1 + g, 1 + 2g, 1 + 3g with g = (sqrt(1000) - 1) / 3 = 10.2076
    assert quadratic_spacing(1000, 4) == [1, 126, 459, 1000]
    gaps = torch.tensor(quadratic_spacing(1000, 20)).diff()
    assert (gaps.diff() > 0).all()
    assert uniform_spacing(1000, 100) != quadratic_spacing(1000, 100)


def test_samplers_say_what_they_are() -> None:
    assert repr(DDIM(10, 0.5, quadratic_spacing)) == "DDIM(steps=10, eta=0.5, spacing=quadratic_spacing)"
    assert repr(Ancestral(FixedLarge())) == "Ancestral(variance=FixedLarge, steps=None, spacing=uniform_spacing)"
