"""Predictions: each inverts the others, is the paper's formula, and stays finite at both ends of the chain."""

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
    compute_velocity,
    q_posterior,
    q_sample,
    score,
    snr,
)
from lightning_ddpm.utils.errors import UserError

PREDICTIONS = [Epsilon(), X0(), Velocity(), PosteriorMean()]
SCHEDULES = [Linear(1000), Quadratic(1000), Sigmoid(1000), Cosine(1000), Linear(1, 0.5, 0.5), Cosine(4)]
ZERO = [ZeroTerminalSNR(Linear(1000)), ZeroTerminalSNR(Cosine(4))]
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
every_schedule = pytest.mark.parametrize(
    "schedule", [*SCHEDULES, *ZERO], ids=lambda each: f"{type(each).__name__}{each.T}"
)


def pair(b: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, b, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def refused(prediction: Parameterization, schedule: NoiseSchedule) -> bool:
    """Whether x_T is nothing but noise, and the prediction says no more."""
    return isinstance(prediction, Epsilon) and schedule.alpha_bar[-1].item() == 0


def every_step(schedule: NoiseSchedule, prediction: Parameterization | None = None) -> Tensor:
    """1..T, less the T at which the prediction says nothing about x_0."""
    return torch.arange(1, schedule.T + 1 - (prediction is not None and refused(prediction, schedule)))


@every_schedule
@every_prediction
def test_the_target_stands_for_the_image_and_the_noise_it_was_made_of(
    prediction: Parameterization, schedule: NoiseSchedule
) -> None:
    t = every_step(schedule, prediction)
    x_0, eps = pair(len(t))
    x_t = q_sample(schedule, x_0, t, eps)
    guess = prediction.to_denoised(schedule, x_t, prediction.target(schedule, x_0, eps, t), t)
    # x_0 cannot be had better than float64's rounding over sqrt(alpha_bar), down to 5e-5 here
    torch.testing.assert_close(guess.x_0, x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(guess.eps, eps, rtol=0, atol=1e-10)


@every_schedule
@every_prediction
def test_any_output_stands_for_an_image_and_a_noise_that_make_x_t(
    prediction: Parameterization, schedule: NoiseSchedule
) -> None:
    t = every_step(schedule, prediction)
    x_t, output = pair(len(t))
    x_0, eps = prediction.to_denoised(schedule, x_t, output, t)
    torch.testing.assert_close(q_sample(schedule, x_0, t, eps), x_t, rtol=0, atol=1e-10)
    again = prediction.target(schedule, x_0, eps, t)
    torch.testing.assert_close(again, output, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(PREDICTIONS),
    st.sampled_from(PREDICTIONS),
    st.floats(1e-6, 0.01),
    st.floats(0.011, 0.5),
    st.integers(1, 40),
)
def test_every_prediction_converts_to_every_other_and_back(
    first: Parameterization, second: Parameterization, beta_min: float, beta_max: float, steps: int
) -> None:
    schedule = Linear(steps, beta_min, beta_max)
    t = every_step(schedule)
    x_t, output = pair(steps)
    there = second.target(schedule, *first.to_denoised(schedule, x_t, output, t), t)
    back = first.target(schedule, *second.to_denoised(schedule, x_t, there, t), t)
    torch.testing.assert_close(back, output, rtol=1e-6, atol=1e-6)


@every_prediction
def test_the_factor_is_that_of_the_squared_errors(prediction: Parameterization) -> None:
    schedule = Linear(50, 1e-3, 0.2)
    t = every_step(schedule)
    x_t, right = pair(50)
    wrong = right + 1
    errors = [prediction.to_denoised(schedule, x_t, each, t).x_0 for each in (right, wrong)]
    of_x_0 = (errors[0] - errors[1]).square().flatten(1).mean(1)
    torch.testing.assert_close(1 / of_x_0, prediction.x_0_factor(schedule, t), rtol=1e-8, atol=0)


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
def test_the_posterior_mean_is_the_posteriors_and_ho_et_als_eq_11(schedule: NoiseSchedule) -> None:
    t = every_step(schedule)
    x_0, eps = pair(len(t))
    x_t = q_sample(schedule, x_0, t, eps)
    mean = PosteriorMean().target(schedule, x_0, eps, t)
    torch.testing.assert_close(mean, q_posterior(schedule, x_t, x_0, t - 1, t).mean, rtol=0, atol=1e-10)
    beta, noise = (table[t].view(-1, 1, 1, 1) for table in (schedule.beta, schedule.noise))
    by_eps = (x_t - beta / noise * eps) / (1 - beta).sqrt()
    told = torch.ones_like(t, dtype=torch.bool) if schedule.alpha_bar[-1] > 0 else t < schedule.T  # else 0/0
    torch.testing.assert_close(mean[told], by_eps[told], rtol=1e-9, atol=1e-10)


def test_the_score_of_the_best_guess_is_the_gradient_of_the_log_density() -> None:
    # x_0 ~ N(mu, s^2): E[eps | x_t] = noise (x_t - signal mu) / (signal^2 s^2 + noise^2)
    schedule, t, mu, s = Linear(100), 40, 0.3, 0.5
    x_t = pair()[0].requires_grad_()
    signal, noise = schedule.signal[t], schedule.noise[t]
    variance = signal**2 * s**2 + noise**2
    log_density = torch.distributions.Normal(signal * mu, variance.sqrt()).log_prob(x_t).sum()
    (gradient,) = torch.autograd.grad(log_density, x_t)
    torch.testing.assert_close(score(schedule, noise * (x_t - signal * mu) / variance, t), gradient)


@every_schedule
@every_prediction
def test_conversions_are_finite_in_float32_at_both_ends(prediction: Parameterization, schedule: NoiseSchedule) -> None:
    if refused(prediction, schedule):
        pytest.skip("refused; see below")
    for t in (1, schedule.T):
        x_t, output = pair(dtype=torch.float32).requires_grad_().unbind(0)
        x_0, eps = prediction.to_denoised(schedule, x_t, output, t)
        targets = [each.target(schedule, x_0, eps, t) for each in PREDICTIONS]
        for each in (x_0, eps, *targets):
            assert each.dtype == torch.float32
            assert each.isfinite().all()
        for gradient in torch.autograd.grad((x_0 + eps).sum(), (x_t, output)):
            assert gradient.isfinite().all()


def test_the_noise_cannot_be_predicted_where_there_is_nothing_else() -> None:
    with pytest.raises(UserError, match=r"zero terminal SNR.*Epsilon.*Velocity or Data"):
        Denoiser(lambda x_t, t: x_t, ZERO[0])
    for prediction in (X0(), Velocity(), PosteriorMean()):
        Denoiser(lambda x_t, t: x_t, ZERO[0], parameterization=prediction)


@pytest.mark.parametrize("sampler", [DDIM(7), DDIM(7, 1.0), Ancestral(FixedSmall(), 7)], ids=repr)
@every_prediction
def test_samplers_do_not_know_which_prediction_it_is(prediction: Parameterization, sampler: DDIM | Ancestral) -> None:
    schedule = Linear(100, 1e-3, 0.1)

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 10)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = Epsilon().to_denoised(schedule, x_t, eps(x_t, t), t).x_0
        return prediction.target(schedule, x_0, eps(x_t, t), t)

    x_T = pair()[0]

    def noise(like: Tensor) -> Tensor:
        return torch.ones_like(like)

    expected = sampler.sample(Denoiser(eps, schedule), x_T, noise)
    torch.testing.assert_close(
        sampler.sample(Denoiser(network, schedule, parameterization=prediction), x_T, noise),
        expected,
        rtol=0,
        atol=1e-9,
    )


def test_twice_the_channels_carry_the_variance_and_other_numbers_are_an_error() -> None:
    schedule, x_t = Linear(100), pair()[0]
    guess = Denoiser(lambda x_t, t: torch.cat([0.1 * x_t, x_t], dim=1), schedule, clip=None)(x_t, 50)
    assert guess.nu is not None
    torch.testing.assert_close(guess.nu, (x_t + 1) / 2)
    torch.testing.assert_close(guess.eps, 0.1 * x_t)
    assert Denoiser(lambda x_t, t: x_t, schedule)(x_t, 50).nu is None
    with pytest.raises(UserError, match=r"2 channels with as many, or twice as many.*got 3"):
        Denoiser(lambda x_t, t: x_t[:, [0, 0, 0]], schedule)(x_t, 50)


def test_a_batch_of_steps_gives_each_image_its_own() -> None:
    schedule, x_t = Cosine(20), pair()[0]
    denoise = Denoiser(lambda x_t, t: torch.sin(x_t + t.view(-1, 1, 1, 1)), schedule)
    together = denoise(x_t, torch.tensor([1, 7, 20]))
    for i, t in enumerate((1, 7, 20)):
        torch.testing.assert_close(together.x_0[i : i + 1], denoise(x_t[i : i + 1], t).x_0)


# ---- between the steps -------------------------------------------------------------------------------------------


@every_schedule
def test_real_times_meet_the_tables_at_whole_ones_and_rise_between(schedule: NoiseSchedule) -> None:
    whole = torch.arange(schedule.T + 1)
    real = whole.double()
    torch.testing.assert_close(schedule.signal_at(real), schedule.signal, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.noise_at(real), schedule.noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.alpha_bar_at(real), schedule.alpha_bar, rtol=0, atol=1e-12)
    assert torch.equal(schedule.signal_at(whole), schedule.signal)
    fine = torch.linspace(0, schedule.T, 3001, dtype=torch.float64)
    assert (schedule.noise_at(fine).diff() >= 0).all()
    torch.testing.assert_close(schedule.time_at(schedule.angle_at(fine)), fine, rtol=0, atol=1e-6 * schedule.T)


@every_prediction
def test_predictions_invert_at_real_times_too(prediction: Parameterization) -> None:
    schedule, t = Linear(100), torch.tensor([0.4, 1.5, 99.9], dtype=torch.float64)
    x_0, eps = pair()
    x_t = schedule.signal_at(t).view(-1, 1, 1, 1) * x_0 + schedule.noise_at(t).view(-1, 1, 1, 1) * eps
    guess = prediction.to_denoised(schedule, x_t, prediction.target(schedule, x_0, eps, t), t)
    torch.testing.assert_close(guess.x_0, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(guess.eps, eps, rtol=0, atol=1e-9)


def test_the_velocity_is_the_derivative_by_the_angle() -> None:
    schedule, t = Linear(100), torch.tensor([10.3, 50.0, 99.5], dtype=torch.float64)
    x_0, eps = pair()
    phi = schedule.angle_at(t).view(-1, 1, 1, 1)
    ahead, behind = (angle.cos() * x_0 + angle.sin() * eps for angle in (phi + 1e-6, phi - 1e-6))
    torch.testing.assert_close((ahead - behind) / 2e-6, compute_velocity(schedule, x_0, eps, t), rtol=0, atol=1e-8)
