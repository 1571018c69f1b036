"""Properties of any schedule, spacing and conversion, tested on hypothesis' examples."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    AlphaBarFunction,
    Epsilon,
    ExplicitBetas,
    NoiseSchedule,
    Parameterization,
    PosteriorMean,
    Velocity,
    ZeroTerminalSNR,
    q_sample,
    quadratic_spacing,
    trailing_spacing,
    uniform_spacing,
)
from lightning_ddpm.diffusion.process import (
    posterior_variance,
    q_posterior,
    q_transition,
    reverse_mean,
    score,
    transition_variance,
)
from lightning_ddpm.utils.errors import UserError

property_test = settings(deadline=None, max_examples=60, derandomize=True)

betas = st.lists(st.floats(1e-9, 1 - 1e-9), min_size=1, max_size=30)
"""In any order and size; at most 30, so that alpha_bar_T is rarely too small for float64."""

mild_betas = st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=20)
"""alpha_bar_T >= 1e-6, so that x_0 can be computed from x_t and eps."""


def make_schedule(values: list[float]) -> ExplicitBetas:
    """Return the schedule of these betas, if float64 can represent it."""
    assume(math.prod(1 - value for value in values[:-1]) > 1e-300)
    return ExplicitBetas(values)


def image(b: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_timesteps(schedule: NoiseSchedule) -> Tensor:
    return torch.arange(1, schedule.T + 1)


# ---- schedules ---------------------------------------------------------------------------------------------------


@property_test
@given(betas)
def test_any_betas_in_0_1_give_a_decreasing_alpha_bar(values: list[float]) -> None:
    schedule = make_schedule(values)
    assert len(values) == schedule.T
    assert schedule.beta[1:].tolist() == values
    assert schedule.alpha_bar[0] == 1
    assert (schedule.alpha_bar.diff() < 0).all()
    assert (schedule.angle.diff() >= 0).all()
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(schedule.T + 1).double())


@property_test
@given(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, max_size=1100))
def test_betas_are_either_a_valid_schedule_or_refused(values: list[float]) -> None:
    try:
        schedule = ExplicitBetas(values)
    except UserError:
        assert min(values) < 1e-15 or math.prod(1 - value for value in values[:-1]) < 1e-290
        return
    assert (schedule.alpha_bar.diff() < 0).all()
    assert (schedule.noise[1:] > 0).all()


@property_test
@given(betas)
def test_the_transitions_of_any_betas_compose_to_the_kernel(values: list[float]) -> None:
    schedule = make_schedule(values)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    mean, variance = one, 0 * one
    for t in range(1, schedule.T + 1):
        step = q_transition(schedule, mean, t - 1, t)
        slope = q_transition(schedule, one, t - 1, t).mean
        mean, variance = step.mean, slope**2 * variance + step.variance
        assert abs(mean - q_sample(schedule, one, t, 0 * one)).item() < 1e-12
        assert abs(variance - q_sample(schedule, 0 * one, t, one) ** 2).item() < 1e-12


@property_test
@given(betas, st.data())
def test_the_posterior_is_narrower_than_the_transition_for_steps_of_any_length(
    values: list[float], data: st.DataObject
) -> None:
    schedule = make_schedule(values)
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    small, large = posterior_variance(schedule, s, t).item(), transition_variance(schedule, s, t).item()
    assert 0 <= small <= large <= 1
    assert (small == 0) == (s == 0)
    if s == t - 1:
        assert large == pytest.approx(values[s], abs=1e-15)
    # the variance of eps' share in the mean of x_s is never negative
    assert small <= 1 - schedule.alpha_bar[s].item() + 1e-15


@property_test
@given(st.lists(st.floats(1e-6, 0.9), min_size=2, max_size=40))
def test_any_schedule_can_be_rescaled_to_zero_terminal_snr(values: list[float]) -> None:
    schedule = make_schedule(values)
    zero = ZeroTerminalSNR(schedule)
    assert zero.alpha_bar[-1] == 0
    assert zero.signal[-1] == 0
    assert zero.noise[-1] == 1
    assert zero.angle[-1].item() == pytest.approx(math.pi / 2, abs=1e-15)
    assert zero.alpha_bar[1].item() == pytest.approx(schedule.alpha_bar[1].item(), abs=1e-14)
    # the gaps of sqrt(alpha_bar) keep their ratios
    shares = (schedule.signal[1:] - schedule.signal[-1]) / (schedule.signal[1] - schedule.signal[-1])
    torch.testing.assert_close(zero.alpha_bar[1:], schedule.alpha_bar[1] * shares**2, rtol=0, atol=1e-13)
    rescaled_twice = ZeroTerminalSNR(zero)
    torch.testing.assert_close(rescaled_twice.alpha_bar, zero.alpha_bar, rtol=0, atol=1e-13)


@property_test
@given(st.integers(1, 200), st.floats(0.1, 5), st.floats(0.01, 100))
def test_alpha_bar_is_the_given_function_normalised_at_time_0(steps: int, rate: float, start: float) -> None:
    schedule = AlphaBarFunction(lambda time: start * math.exp(-rate * time), steps)
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(schedule.alpha_bar, (-rate * time).exp(), rtol=1e-10, atol=0)


# ---- real times -------------------------------------------------------------------------------------------


@property_test
@given(mild_betas, st.booleans(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_angle_at_and_time_at_are_inverse_and_agree_with_the_tables(
    values: list[float], zero: bool, shares: list[float]
) -> None:
    schedule: NoiseSchedule = ZeroTerminalSNR(make_schedule(values)) if zero else make_schedule(values)
    integers = torch.arange(schedule.T + 1)
    torch.testing.assert_close(schedule.angle_at(integers.double()), schedule.angle, rtol=0, atol=1e-15)
    torch.testing.assert_close(schedule.time_at(schedule.angle), integers.double(), rtol=0, atol=1e-10)
    t = torch.tensor(shares, dtype=torch.float64) * schedule.T
    torch.testing.assert_close(schedule.time_at(schedule.angle_at(t)), t, rtol=0, atol=1e-9)
    angle = torch.tensor(shares, dtype=torch.float64) * schedule.angle[-1]
    torch.testing.assert_close(schedule.angle_at(schedule.time_at(angle)), angle, rtol=0, atol=1e-12)
    assert (schedule.angle_at(t.sort().values).diff() >= 0).all()
    for table in ("signal", "noise", "alpha_bar"):
        ends = torch.stack([getattr(schedule, table)[each.long()] for each in (t.floor(), t.ceil())])
        interpolated = getattr(schedule, f"{table}_at")(t)
        assert (interpolated >= ends.amin(0) - 1e-12).all()
        assert (interpolated <= ends.amax(0) + 1e-12).all()


# ---- conversions -------------------------------------------------------------------------------------------------

PARAMETERIZATIONS = [Epsilon(), X0(), Velocity(), PosteriorMean()]


@property_test
@given(mild_betas, st.sampled_from(PARAMETERIZATIONS), st.sampled_from(PARAMETERIZATIONS))
def test_noise_image_velocity_and_mean_convert_into_each_other(
    values: list[float], first: Parameterization, second: Parameterization
) -> None:
    schedule = make_schedule(values)
    t = all_timesteps(schedule)
    x_0, eps = image(len(t)), image(len(t), 1)
    x_t = q_sample(schedule, x_0, t, eps)
    converted = second.target(schedule, *first.to_denoised(schedule, x_t, first.target(schedule, x_0, eps, t), t), t)
    torch.testing.assert_close(converted, second.target(schedule, x_0, eps, t), rtol=0, atol=1e-9)
    converted_back = first.target(schedule, *second.to_denoised(schedule, x_t, converted, t), t)
    torch.testing.assert_close(converted_back, first.target(schedule, x_0, eps, t), rtol=0, atol=1e-9)


@property_test
@given(mild_betas)
def test_the_score_gives_the_noise_and_tweedies_formula_the_image(values: list[float]) -> None:
    schedule = make_schedule(values)
    t = all_timesteps(schedule)
    x_0, eps = image(len(t)), image(len(t), 1)
    x_t = q_sample(schedule, x_0, t, eps)
    signal, noise = (table[t].view(-1, 1, 1, 1) for table in (schedule.signal, schedule.noise))
    gradient = score(schedule, eps, t)
    torch.testing.assert_close(-noise * gradient, eps, rtol=1e-12, atol=0)
    # Efron 2011: E[signal x_0 | x_t] = x_t + noise^2 grad log q(x_t)
    torch.testing.assert_close((x_t + noise**2 * gradient) / signal, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, -(x_t - signal * x_0) / noise**2, rtol=0, atol=1e-9)


@property_test
@given(mild_betas, st.data())
def test_velocity_and_x_0_are_invertible_under_zero_terminal_snr(values: list[float], data: st.DataObject) -> None:
    schedule = ZeroTerminalSNR(make_schedule(values))
    parameterization: Parameterization = data.draw(st.sampled_from([X0(), Velocity()]))
    t = all_timesteps(schedule)
    x_0, eps = image(len(t)), image(len(t), 1)
    denoised = parameterization.to_denoised(
        schedule, q_sample(schedule, x_0, t, eps), parameterization.target(schedule, x_0, eps, t), t
    )
    torch.testing.assert_close(denoised.x_0, x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(denoised.eps, eps, rtol=0, atol=1e-10)


@property_test
@given(mild_betas, st.data(), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_reverse_step_preserves_q_for_every_eta(values: list[float], data: st.DataObject, eta: float) -> None:
    # Song et al. 2021, lemma 1: if x_t ~ q(x_t | x_0), then x_s ~ q(x_s | x_0), for any sigma; eta = 1 is Bayes' rule
    schedule = make_schedule(values)
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    x_0, eps = image(1), image(1, 1)
    sigma = eta * posterior_variance(schedule, s, t).sqrt()
    x_t = q_sample(schedule, x_0, t, eps)
    mean, slope = (reverse_mean(schedule, x_0, each, s, sigma) for each in (eps, torch.ones_like(eps)))
    slope = slope - reverse_mean(schedule, x_0, 0 * eps, s, sigma)
    torch.testing.assert_close(slope**2 + sigma**2, schedule.noise[s].expand_as(slope) ** 2, rtol=0, atol=1e-14)
    if eta == 1:
        torch.testing.assert_close(mean, q_posterior(schedule, x_t, x_0, s, t).mean, rtol=0, atol=1e-10)


# ---- spacings ----------------------------------------------------------------------------------------------------


@property_test
@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@given(st.data())
def test_a_spacing_increases_ends_at_T_and_has_its_length(
    spacing: Callable[[int, int], list[int]], data: st.DataObject
) -> None:
    T = data.draw(st.integers(1, 5000))
    steps = data.draw(st.integers(1, T))
    times = spacing(T, steps)
    assert len(times) == steps
    assert all(isinstance(time, int) for time in times)
    assert all(earlier < later for earlier, later in pairwise([0, *times]))
    assert times[-1] == T
    if spacing is not quadratic_spacing:
        gaps = [later - earlier for earlier, later in pairwise([0, *times] if spacing is trailing_spacing else times)]
        assert max(gaps, default=1) - min(gaps, default=1) <= 1
