"""Parameterizations: each inverts the others, is the paper's formula, and is finite at both ends of the chain."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    Ancestral,
    Cosine,
    Denoiser,
    Epsilon,
    FixedSmall,
    Linear,
    NoiseSchedule,
    Parameterization,
    PosteriorMean,
    Quadratic,
    Sigmoid,
    Velocity,
    ZeroTerminalSNR,
    q_sample,
)
from lightning_ddpm.diffusion.process import compute_velocity, q_posterior, score, snr
from lightning_ddpm.utils.errors import UserError

PARAMETERIZATIONS = [Epsilon(), X0(), Velocity(), PosteriorMean()]
SCHEDULES = [Linear(1000), Quadratic(1000), Sigmoid(1000), Cosine(1000), Linear(1, 0.5, 0.5), Cosine(4)]
ZERO = [ZeroTerminalSNR(Linear(1000)), ZeroTerminalSNR(Cosine(4))]
every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
every_schedule = pytest.mark.parametrize(
    "schedule", [*SCHEDULES, *ZERO], ids=lambda each: f"{type(each).__name__}{each.T}"
)


def make_pair(b: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, b, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def is_refused(parameterization: Parameterization, schedule: NoiseSchedule) -> bool:
    """Return whether x_T is pure noise and the output does not determine x_0 there."""
    return isinstance(parameterization, Epsilon) and schedule.alpha_bar[-1].item() == 0


def all_timesteps(schedule: NoiseSchedule, parameterization: Parameterization | None = None) -> Tensor:
    """Return 1..T, without T if the output does not determine x_0 there."""
    return torch.arange(1, schedule.T + 1 - (parameterization is not None and is_refused(parameterization, schedule)))


@every_schedule
@every_parameterization
def test_the_target_converts_back_to_its_x_0_and_eps(
    parameterization: Parameterization, schedule: NoiseSchedule
) -> None:
    t = all_timesteps(schedule, parameterization)
    x_0, eps = make_pair(len(t))
    x_t = q_sample(schedule, x_0, t, eps)
    denoised = parameterization.to_denoised(schedule, x_t, parameterization.target(schedule, x_0, eps, t), t)
    # x_0 is only as exact as float64's rounding over sqrt(alpha_bar), which is as small as 5e-5 here
    torch.testing.assert_close(denoised.x_0, x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(denoised.eps, eps, rtol=0, atol=1e-10)


@every_schedule
@every_parameterization
def test_the_x_0_and_eps_of_any_output_give_x_t(parameterization: Parameterization, schedule: NoiseSchedule) -> None:
    t = all_timesteps(schedule, parameterization)
    x_t, output = make_pair(len(t))
    x_0, eps = parameterization.to_denoised(schedule, x_t, output, t)
    torch.testing.assert_close(q_sample(schedule, x_0, t, eps), x_t, rtol=0, atol=1e-10)
    target = parameterization.target(schedule, x_0, eps, t)
    torch.testing.assert_close(target, output, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(PARAMETERIZATIONS),
    st.sampled_from(PARAMETERIZATIONS),
    st.floats(1e-6, 0.01),
    st.floats(0.011, 0.5),
    st.integers(1, 40),
)
def test_every_parameterization_converts_to_every_other_and_back(
    first: Parameterization, second: Parameterization, beta_min: float, beta_max: float, steps: int
) -> None:
    schedule = Linear(steps, beta_min, beta_max)
    t = all_timesteps(schedule)
    x_t, output = make_pair(steps)
    converted = second.target(schedule, *first.to_denoised(schedule, x_t, output, t), t)
    converted_back = first.target(schedule, *second.to_denoised(schedule, x_t, converted, t), t)
    torch.testing.assert_close(converted_back, output, rtol=1e-6, atol=1e-6)


@every_parameterization
def test_x_0_factor_is_the_ratio_of_the_squared_errors(parameterization: Parameterization) -> None:
    schedule = Linear(50, 1e-3, 0.2)
    t = all_timesteps(schedule)
    x_t, output = make_pair(50)
    other_output = output + 1
    predictions = [parameterization.to_denoised(schedule, x_t, each, t).x_0 for each in (output, other_output)]
    x_0_error = (predictions[0] - predictions[1]).square().flatten(1).mean(1)
    torch.testing.assert_close(1 / x_0_error, parameterization.x_0_factor(schedule, t), rtol=1e-8, atol=0)


def test_targets_by_hand() -> None:
    schedule = Linear(2, 0.36, 0.5)  # alpha_bar = 0.64, 0.32
    x_0, eps = torch.tensor([2.0, 3.0], dtype=torch.float64).view(2, 1, 1, 1, 1)
    assert Epsilon().target(schedule, x_0, eps, 1).item() == 3
    assert X0().target(schedule, x_0, eps, 1).item() == 2
    assert Velocity().target(schedule, x_0, eps, 1).item() == pytest.approx(0.8 * 3 - 0.6 * 2)
    assert PosteriorMean().target(schedule, x_0, eps, 1).item() == pytest.approx(2)
    assert score(schedule, eps, 1).item() == pytest.approx(-3 / 0.6)
    assert snr(schedule, 1).item() == pytest.approx(0.64 / 0.36)


@every_schedule
def test_the_posterior_mean_is_q_posteriors_and_ho_et_als_eq_11(schedule: NoiseSchedule) -> None:
    t = all_timesteps(schedule)
    x_0, eps = make_pair(len(t))
    x_t = q_sample(schedule, x_0, t, eps)
    mean = PosteriorMean().target(schedule, x_0, eps, t)
    torch.testing.assert_close(mean, q_posterior(schedule, x_t, x_0, t - 1, t).mean, rtol=0, atol=1e-10)
    beta, noise = (table[t].view(-1, 1, 1, 1) for table in (schedule.beta, schedule.noise))
    by_eps = (x_t - beta / noise * eps) / (1 - beta).sqrt()
    defined = torch.ones_like(t, dtype=torch.bool) if schedule.alpha_bar[-1] > 0 else t < schedule.T  # else 0/0
    torch.testing.assert_close(mean[defined], by_eps[defined], rtol=1e-9, atol=1e-10)


def test_the_score_of_the_expected_noise_is_the_gradient_of_the_log_density() -> None:
    # x_0 ~ N(mu, s^2): E[eps | x_t] = noise (x_t - signal mu) / (signal^2 s^2 + noise^2)
    schedule, t, mu, s = Linear(100), 40, 0.3, 0.5
    x_t = make_pair()[0].requires_grad_()
    signal, noise = schedule.signal[t], schedule.noise[t]
    variance = signal**2 * s**2 + noise**2
    log_density = torch.distributions.Normal(signal * mu, variance.sqrt()).log_prob(x_t).sum()
    (gradient,) = torch.autograd.grad(log_density, x_t)
    torch.testing.assert_close(score(schedule, noise * (x_t - signal * mu) / variance, t), gradient)


@every_schedule
@every_parameterization
def test_conversions_are_finite_in_float32_at_both_ends(
    parameterization: Parameterization, schedule: NoiseSchedule
) -> None:
    if is_refused(parameterization, schedule):
        pytest.skip("refused; see test_epsilon_is_refused_under_zero_terminal_snr")
    for t in (1, schedule.T):
        x_t, output = make_pair(dtype=torch.float32).requires_grad_().unbind(0)
        x_0, eps = parameterization.to_denoised(schedule, x_t, output, t)
        targets = [each.target(schedule, x_0, eps, t) for each in PARAMETERIZATIONS]
        for each in (x_0, eps, *targets):
            assert each.dtype == torch.float32
            assert each.isfinite().all()
        for gradient in torch.autograd.grad((x_0 + eps).sum(), (x_t, output)):
            assert gradient.isfinite().all()


def test_epsilon_is_refused_under_zero_terminal_snr() -> None:
    with pytest.raises(UserError, match=r"zero terminal SNR.*Epsilon.*Velocity or X0"):
        Denoiser(lambda x_t, t: x_t, ZERO[0])
    for parameterization in (X0(), Velocity(), PosteriorMean()):
        Denoiser(lambda x_t, t: x_t, ZERO[0], parameterization=parameterization)


@pytest.mark.parametrize("sampler", [DDIM(7), DDIM(7, 1.0), Ancestral(FixedSmall(), 7)], ids=repr)
@every_parameterization
def test_samples_do_not_depend_on_the_parameterization(
    parameterization: Parameterization, sampler: DDIM | Ancestral
) -> None:
    schedule = Linear(100, 1e-3, 0.1)

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 10)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = Epsilon().to_denoised(schedule, x_t, eps(x_t, t), t).x_0
        return parameterization.target(schedule, x_0, eps(x_t, t), t)

    x_T = make_pair()[0]

    def noise(like: Tensor) -> Tensor:
        return torch.ones_like(like)

    expected = sampler.sample(Denoiser(eps, schedule), x_T, noise)
    torch.testing.assert_close(
        sampler.sample(Denoiser(network, schedule, parameterization=parameterization), x_T, noise),
        expected,
        rtol=0,
        atol=1e-9,
    )


def test_twice_the_channels_hold_the_variance_and_other_numbers_are_refused() -> None:
    schedule, x_t = Linear(100), make_pair()[0]
    denoised = Denoiser(lambda x_t, t: torch.cat([0.1 * x_t, x_t], dim=1), schedule, clip=None)(x_t, 50)
    assert denoised.nu is not None
    torch.testing.assert_close(denoised.nu, (x_t + 1) / 2)
    torch.testing.assert_close(denoised.eps, 0.1 * x_t)
    assert Denoiser(lambda x_t, t: x_t, schedule)(x_t, 50).nu is None
    with pytest.raises(UserError, match=r"or twice its channels where it learns the variance, got"):
        Denoiser(lambda x_t, t: x_t[:, [0, 0, 0]], schedule)(x_t, 50)


def test_each_image_of_a_batch_has_its_own_timestep() -> None:
    schedule, x_t = Cosine(20), make_pair()[0]
    denoise = Denoiser(lambda x_t, t: torch.sin(x_t + t.view(-1, 1, 1, 1)), schedule)
    together = denoise(x_t, torch.tensor([1, 7, 20]))
    for i, t in enumerate((1, 7, 20)):
        torch.testing.assert_close(together.x_0[i : i + 1], denoise(x_t[i : i + 1], t).x_0)


# ---- real times -------------------------------------------------------------------------------------------


@every_schedule
def test_real_times_agree_with_the_tables_and_are_monotone_in_between(schedule: NoiseSchedule) -> None:
    integers = torch.arange(schedule.T + 1)
    real = integers.double()
    torch.testing.assert_close(schedule.signal_at(real), schedule.signal, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.noise_at(real), schedule.noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.alpha_bar_at(real), schedule.alpha_bar, rtol=0, atol=1e-12)
    assert torch.equal(schedule.signal_at(integers), schedule.signal)
    fine = torch.linspace(0, schedule.T, 3001, dtype=torch.float64)
    assert (schedule.noise_at(fine).diff() >= 0).all()
    torch.testing.assert_close(schedule.time_at(schedule.angle_at(fine)), fine, rtol=0, atol=1e-6 * schedule.T)


@every_parameterization
def test_conversions_are_inverse_at_real_times(parameterization: Parameterization) -> None:
    schedule, t = Linear(100), torch.tensor([0.4, 1.5, 99.9], dtype=torch.float64)
    x_0, eps = make_pair()
    x_t = schedule.signal_at(t).view(-1, 1, 1, 1) * x_0 + schedule.noise_at(t).view(-1, 1, 1, 1) * eps
    denoised = parameterization.to_denoised(schedule, x_t, parameterization.target(schedule, x_0, eps, t), t)
    torch.testing.assert_close(denoised.x_0, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(denoised.eps, eps, rtol=0, atol=1e-9)


def test_the_velocity_is_the_derivative_with_respect_to_the_angle() -> None:
    schedule, t = Linear(100), torch.tensor([10.3, 50.0, 99.5], dtype=torch.float64)
    x_0, eps = make_pair()
    phi = schedule.angle_at(t).view(-1, 1, 1, 1)
    after, before = (angle.cos() * x_0 + angle.sin() * eps for angle in (phi + 1e-6, phi - 1e-6))
    torch.testing.assert_close((after - before) / 2e-6, compute_velocity(schedule, x_0, eps, t), rtol=0, atol=1e-8)
