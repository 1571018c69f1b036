"""The forward process against its definition, and its posterior against an independent Bayes' rule."""

import pytest
import torch
from torch import Tensor

from lightning_ddpm.diffusion import Cosine, Linear, NoiseSchedule, Quadratic, Sigmoid, q_sample
from lightning_ddpm.diffusion.process import (
    eps_to_x_0,
    posterior_variance,
    q_posterior,
    q_transition,
    reverse_mean,
    transition_variance,
    x_0_to_eps,
)

SCHEDULES = [Linear(1000), Quadratic(100), Sigmoid(100), Cosine(100)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)


def image(seed: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 4, 4, dtype=torch.float64, generator=generator)


def list_timestep_pairs(T: int) -> list[tuple[int, int]]:
    """Return (s, t) of neighbours and of longer steps, all along the chain."""
    return [(t - 1, t) for t in (2, 3, T // 2, T)] + [(1, T), (1, 5), (T // 3, T // 2), (T // 2, T), (7, T - 1)]


def apply_bayes_rule(schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, s: int, t: int) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of x_s given x_0 and x_t from the betas alone: precisions add."""
    prior_mean, prior_variance = x_0, torch.zeros((), dtype=torch.float64)
    for beta in schedule.beta[1 : s + 1]:
        prior_mean, prior_variance = (1 - beta).sqrt() * prior_mean, (1 - beta) * prior_variance + beta
    slope, variance = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for beta in schedule.beta[s + 1 : t + 1]:
        slope, variance = (1 - beta).sqrt() * slope, (1 - beta) * variance + beta
    precision = 1 / prior_variance + slope**2 / variance
    return (prior_mean / prior_variance + slope * x_t / variance) / precision, 1 / precision


@every_schedule
def test_T_transitions_of_one_step_compose_to_the_kernel(schedule: NoiseSchedule) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    mean, variance = one, torch.zeros_like(one)
    for t in range(1, schedule.T + 1):
        step = q_transition(schedule, mean, t - 1, t)
        slope = q_transition(schedule, one, t - 1, t).mean
        mean, variance = step.mean, slope**2 * variance + step.variance
        assert abs(mean - q_sample(schedule, one, t, 0 * one)).item() < 1e-12
        assert abs(variance - q_sample(schedule, 0 * one, t, one) ** 2).item() < 1e-12


@every_schedule
def test_the_variance_of_a_transition_of_one_step_is_beta(schedule: NoiseSchedule) -> None:
    t = torch.arange(1, schedule.T + 1)
    x = image(0, schedule.T)
    step = q_transition(schedule, x, t - 1, t)
    torch.testing.assert_close(step.variance.flatten(), schedule.beta[1:], rtol=0, atol=1e-14)
    torch.testing.assert_close(step.mean, (1 - schedule.beta[1:]).sqrt()[:, None, None, None] * x, rtol=1e-12, atol=0)


@every_schedule
def test_two_longer_transitions_compose_to_one(schedule: NoiseSchedule) -> None:
    x, (s, t, u) = image(0), (3, 20, schedule.T)
    first = q_transition(schedule, x, s, t)
    second = q_transition(schedule, first.mean, t, u)
    both = q_transition(schedule, x, s, u)
    slope = q_transition(schedule, torch.ones_like(x), t, u).mean
    torch.testing.assert_close(second.mean, both.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        slope**2 * first.variance + second.variance, both.variance.expand_as(x), rtol=1e-12, atol=0
    )


@every_schedule
def test_a_transition_from_x_0_is_the_kernel(schedule: NoiseSchedule) -> None:
    x_0 = image(0)
    kernel = q_transition(schedule, x_0, 0, 30)
    torch.testing.assert_close(kernel.mean, q_sample(schedule, x_0, 30, 0 * x_0), rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel.variance.flatten()[0], schedule.noise[30] ** 2, rtol=1e-12, atol=0)


@every_schedule
def test_q_posterior_is_bayes_rule(schedule: NoiseSchedule) -> None:
    x_0, x_t = image(0), image(1)
    for s, t in list_timestep_pairs(schedule.T):
        mean, variance = apply_bayes_rule(schedule, x_t, x_0, s, t)
        posterior = q_posterior(schedule, x_t, x_0, s, t)
        torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(posterior.variance.flatten()[0], variance, rtol=1e-10, atol=0)
        torch.testing.assert_close(posterior_variance(schedule, s, t), variance, rtol=1e-10, atol=0)


@every_schedule
def test_q_posterior_of_the_last_step_is_x_0_itself(schedule: NoiseSchedule) -> None:
    x_0 = image(0)
    for t in (1, 7, schedule.T):
        posterior = q_posterior(schedule, image(1), x_0, 0, t)
        torch.testing.assert_close(posterior.mean, x_0, rtol=0, atol=1e-12)
        assert (posterior.variance == 0).all()


def test_the_posteriors_of_the_first_steps_by_hand() -> None:
    schedule = Linear(2, beta_min=0.1, beta_max=0.5)  # alpha_bar = 1, 0.9, 0.45
    assert posterior_variance(schedule, 1, 2).item() == pytest.approx(0.5 * 0.1 / 0.55, rel=1e-12)
    assert transition_variance(schedule, 0, 2).item() == pytest.approx(0.55, rel=1e-12)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert q_posterior(schedule, 0 * one, one, 1, 2).mean.item() == pytest.approx(0.9**0.5 * 0.5 / 0.55, rel=1e-12)
    assert q_posterior(schedule, one, 0 * one, 1, 2).mean.item() == pytest.approx(0.5**0.5 * 0.1 / 0.55, rel=1e-12)


@every_schedule
def test_eps_to_x_0_and_x_0_to_eps_are_inverse_at_every_t(schedule: NoiseSchedule) -> None:
    t = torch.arange(1, schedule.T + 1)
    x_0, eps = image(0, schedule.T), image(1, schedule.T)
    x_t = q_sample(schedule, x_0, t, eps)
    # one digit is lost for every power of ten in the ratio of noise to signal
    digits = 1e-14 * (1 / schedule.signal[1:] + 1 / schedule.noise[1:])[:, None, None, None]
    assert ((eps_to_x_0(schedule, x_t, eps, t) - x_0).abs() < digits).all()
    assert ((x_0_to_eps(schedule, x_t, x_0, t) - eps).abs() < digits).all()
    converted_back = eps_to_x_0(schedule, x_t, x_0_to_eps(schedule, x_t, image(2, schedule.T), t), t)
    assert ((converted_back - image(2, schedule.T)).abs() < digits).all()


@every_schedule
def test_reverse_mean_with_the_posterior_variance_is_the_posterior_mean(schedule: NoiseSchedule) -> None:
    x_0, x_t = image(0), image(1)
    for s, t in [*list_timestep_pairs(schedule.T), (0, 1), (0, schedule.T)]:
        eps = x_0_to_eps(schedule, x_t, x_0, t)
        mean = reverse_mean(schedule, x_0, eps, s, posterior_variance(schedule, s, t).sqrt())
        torch.testing.assert_close(mean, q_posterior(schedule, x_t, x_0, s, t).mean, rtol=0, atol=1e-12)


@every_schedule
def test_reverse_mean_without_noise_is_the_kernel_with_the_same_eps(schedule: NoiseSchedule) -> None:
    x_0, eps = image(0), image(1)
    for s in (0, 1, 50, schedule.T - 1):
        mean = reverse_mean(schedule, x_0, eps, s, torch.zeros(()))
        torch.testing.assert_close(mean, q_sample(schedule, x_0, s, eps), rtol=0, atol=1e-14)


@pytest.mark.parametrize("t", [1, 200, 1000])
def test_the_moments_of_q_sample_are_the_kernels(t: int) -> None:
    schedule, n = Linear(1000), 200_000
    eps = torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
    x_t = q_sample(schedule, torch.full_like(eps, 0.7), t, eps)
    alpha_bar = torch.prod(1 - schedule.beta[: t + 1]).item()
    sigma = (1 - alpha_bar) ** 0.5
    assert x_t.mean().item() == pytest.approx(0.7 * alpha_bar**0.5, abs=4 * sigma / n**0.5)
    assert x_t.var().item() == pytest.approx(sigma**2, rel=4 * (2 / n) ** 0.5)


def test_x_0_is_x_t_at_t_0() -> None:
    x_0 = image(0)
    assert torch.equal(q_sample(SCHEDULES[0], x_0, 0, image(1)), x_0)


def test_each_image_of_a_batch_has_its_own_timestep() -> None:
    schedule, x_0, eps = SCHEDULES[0], image(0), image(1)
    t = torch.tensor([1, 400, 1000])
    together = q_sample(schedule, x_0, t, eps)
    posterior = q_posterior(schedule, together, x_0, t - 1, t)
    for i in range(3):
        one = slice(i, i + 1)
        alone = q_sample(schedule, x_0[one], int(t[i]), eps[one])
        assert torch.equal(together[one], alone)
        expected = q_posterior(schedule, alone, x_0[one], int(t[i]) - 1, int(t[i]))
        assert torch.equal(posterior.mean[one], expected.mean)
        assert torch.equal(posterior.variance[one].squeeze(), expected.variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_keep_their_precision_and_coefficients_are_rounded_once(dtype: torch.dtype) -> None:
    schedule, one = SCHEDULES[0], torch.ones(1, 1, 1, 1, dtype=dtype)
    noise = q_sample(schedule, 0 * one, 1, one)
    assert noise.dtype == dtype
    # in bfloat16 1 - alpha_bar_1 = 1 - 0.9999 would be 0
    assert noise.item() == pytest.approx(0.01, rel=torch.finfo(dtype).eps)
    assert q_posterior(schedule, one, one, 1, 2).mean.dtype == dtype
