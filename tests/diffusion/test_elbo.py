"""Kullback-Leibler divergences against their definition, and the score against denoising score matching."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_ddpm.diffusion import (
    Cosine,
    Denoised,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    Linear,
    NoiseSchedule,
    ReverseVariance,
    ZeroTerminalSNR,
    elbo_term,
    q_sample,
)
from lightning_ddpm.diffusion.elbo import gaussian_kl, prior_kl
from lightning_ddpm.diffusion.process import posterior_variance, q_posterior, score, x_0_to_eps


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Compute sum p log(p / q), the definition."""
    return float(np.sum(p * np.log(p / q)))


def density(mean: float, variance: float, x: np.ndarray) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def sum_gaussian_kl(mean1: float, variance1: float, mean2: float, variance2: float) -> float:
    """Compute the KL of two Gaussians by the definition: a sum over 40,001 narrow bins that cover the first."""
    x = mean1 + math.sqrt(variance1) * np.linspace(-12, 12, 40_001)
    return kl(density(mean1, variance1, x), density(mean2, variance2, x)) * float(x[1] - x[0])


def test_the_reference_kl_of_two_coins_is_the_textbooks() -> None:
    assert kl(np.array([0.6, 0.4]), np.array([0.7, 0.3])) == pytest.approx(0.0225824, abs=5e-8)
    coins = [torch.distributions.Bernoulli(torch.tensor(p, dtype=torch.float64)) for p in (0.6, 0.7)]
    assert torch.distributions.kl_divergence(*coins).item() == pytest.approx(0.0225824, abs=5e-8)


@pytest.mark.parametrize(
    "case", [(0.0, 1.0, 0.0, 1.0), (0.3, 0.5, -0.2, 2.0), (1.0, 2.0, 0.0, 0.5), (0.0, 1e-4, 0.01, 2e-4)], ids=str
)
def test_gaussian_kl_equals_its_definition(case: tuple[float, float, float, float]) -> None:
    mean1, variance1, mean2, variance2 = (torch.tensor(each, dtype=torch.float64) for each in case)
    ours = gaussian_kl(mean1, variance1.log(), mean2, variance2.log())
    assert ours.item() == pytest.approx(sum_gaussian_kl(*case), rel=1e-9, abs=1e-12)


SCHEDULES = [Linear(1000), Cosine(50), ZeroTerminalSNR(Linear(1000))]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)


@every_schedule
@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall(), LearnedRange()], ids=repr)
def test_an_elbo_term_is_the_kl_of_its_two_gaussians(variance: ReverseVariance, schedule: NoiseSchedule) -> None:
    for t in (2, 3, schedule.T // 2, schedule.T):
        x_0, x_t, x_0_hat, nu = (torch.full((1, 1, 1, 1), each, dtype=torch.float64) for each in (0.3, 0.5, 0.31, 0.4))
        true = q_posterior(schedule, x_t, x_0, t - 1, t)
        mean = q_posterior(schedule, x_t, x_0_hat, t - 1, t).mean
        small, large = true.variance.item(), schedule.beta[t].item()
        sigma2 = {"FixedLarge": large, "FixedSmall": small}.get(repr(variance), large**0.4 * small**0.6)
        expected = sum_gaussian_kl(true.mean.item(), small, mean.item(), sigma2) / math.log(2)
        denoised = Denoised(x_0_hat, x_0_to_eps(schedule, x_t, x_0_hat, t), nu)
        assert elbo_term(schedule, variance, x_0, t, denoised).item() == pytest.approx(expected, rel=1e-7, abs=1e-11)


@every_schedule
def test_the_elbo_includes_the_constant_of_the_large_variance(schedule: NoiseSchedule) -> None:
    # with the exact mean, by hand: D/2 [log(beta/beta~) - 1 + beta~/beta] nats
    x_0 = torch.full((1, 1, 2, 2), 0.3, dtype=torch.float64)
    for t in (2, 3, schedule.T):
        exact = Denoised(x_0, x_0)
        ratio = (posterior_variance(schedule, t - 1, t) / schedule.beta[t]).item()
        constant = 0.5 * (-math.log(ratio) - 1 + ratio) / math.log(2)
        assert elbo_term(schedule, FixedLarge(), x_0, t, exact).item() == pytest.approx(constant, rel=1e-7, abs=1e-13)
        assert elbo_term(schedule, FixedSmall(), x_0, t, exact).item() == pytest.approx(0, abs=1e-13)
    ratio = (posterior_variance(schedule, 1, 2) / schedule.beta[2]).item()
    assert 0.5 * (-math.log(ratio) - 1 + ratio) > 0.05  # the constant is large enough to matter


@every_schedule
def test_prior_kl_is_the_kl_to_pure_noise(schedule: NoiseSchedule) -> None:
    x_0 = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
    alpha_bar = schedule.alpha_bar[-1].item()
    expected = sum_gaussian_kl(0.9 * alpha_bar**0.5, 1 - alpha_bar, 0, 1) / math.log(2)
    assert prior_kl(schedule, x_0).item() == pytest.approx(expected, rel=1e-6, abs=1e-11)


# ---- denoising score matching ------------------------------------------------------------------------------------

NODES, WEIGHTS = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(40))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def to_column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def marginal_score(schedule: NoiseSchedule, parts: list[tuple[float, float, float]], x_t: Tensor, t: int) -> Tensor:
    """Compute grad log q(x_t) by autograd, for x_0 from a mixture of Gaussians (weight, mean, deviation)."""
    x_t = x_t.detach().requires_grad_()
    signal, noise = schedule.signal[t], schedule.noise[t]
    logs = [
        math.log(weight) + torch.distributions.Normal(signal * mu, (signal**2 * s**2 + noise**2).sqrt()).log_prob(x_t)
        for weight, mu, s in parts
    ]
    return torch.autograd.grad(torch.logsumexp(torch.stack(logs), 0).sum(), x_t)[0]


def conditional_score(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: int) -> Tensor:
    """Compute grad log q(x_t | x_0) with the package's formula from its eps."""
    return score(schedule, x_0_to_eps(schedule, x_t, x_0, t), t)


@every_schedule
def test_the_conditional_score_is_the_gradient_of_the_kernel(schedule: NoiseSchedule) -> None:
    x_0, x_t = to_column(NODES) / 4, to_column(NODES.flip(0)) + 0.3
    for t in (1, schedule.T // 2, schedule.T):
        x = x_t.clone().requires_grad_()
        log_kernel = torch.distributions.Normal(schedule.signal[t] * x_0, schedule.noise[t]).log_prob(x).sum()
        (gradient,) = torch.autograd.grad(log_kernel, x)
        torch.testing.assert_close(conditional_score(schedule, x_0, x_t, t), gradient, rtol=1e-9, atol=1e-9)


@every_schedule
@pytest.mark.parametrize("parts", [[(1.0, 0.3, 0.5)], [(0.3, -0.8, 0.2), (0.7, 0.5, 0.1)]], ids=["one", "two"])
def test_the_mean_of_the_conditional_scores_is_the_marginal_score(
    parts: list[tuple[float, float, float]], schedule: NoiseSchedule
) -> None:
    # grad log q(x_t) = E[grad log q(x_t | x_0) | x_t], x_0 given x_t being a mixture of Gaussians too; Vincent 2011
    for t in (1, schedule.T // 2, schedule.T):
        signal2, noise2 = schedule.alpha_bar[t], 1 - schedule.alpha_bar[t]
        signal = signal2.sqrt()
        for position in (-1.3, 0.0, 0.4):
            x_t = torch.full((1, 1, 1, 1), position, dtype=torch.float64)
            logs, means = [], []
            for weight, mu, s in parts:
                spread = signal2 * s**2 + noise2
                logs.append(math.log(weight) + torch.distributions.Normal(signal * mu, spread.sqrt()).log_prob(x_t))
                mean = mu + signal * s**2 / spread * (x_t - signal * mu)
                x_0 = mean + (s**2 * noise2 / spread).sqrt() * to_column(NODES)
                means.append((to_column(WEIGHTS) * conditional_score(schedule, x_0, x_t, t)).sum())
            shares = torch.stack(logs).flatten().softmax(0)
            expected = marginal_score(schedule, parts, x_t, t).sum()
            torch.testing.assert_close((shares * torch.stack(means)).sum(), expected, rtol=1e-7, atol=1e-7)


def test_denoising_score_matching_is_score_matching_plus_a_constant() -> None:
    # Vincent 2011, eq. 11: E|s - grad log q(x_t|x_0)|^2 = E|s - grad log q(x_t)|^2 + C with C independent of s
    schedule, t, mu, s = Linear(100), 40, 0.3, 0.5
    spread = (schedule.alpha_bar[t] * s**2 + 1 - schedule.alpha_bar[t]).sqrt()
    x_0 = to_column((mu + s * NODES).repeat_interleave(len(NODES)))
    eps, weights = to_column(NODES.repeat(len(NODES))), to_column(torch.outer(WEIGHTS, WEIGHTS).flatten())
    x_joint = q_sample(schedule, x_0, t, eps)
    x_marginal = schedule.signal[t] * mu + spread * to_column(NODES)

    def constant(slope: float, offset: float) -> float:
        denoising = weights * (slope * x_joint + offset - score(schedule, eps, t)) ** 2
        marginal = marginal_score(schedule, [(1.0, mu, s)], x_marginal, t)
        explicit = to_column(WEIGHTS) * (slope * x_marginal + offset - marginal) ** 2
        return (denoising.sum() - explicit.sum()).item()

    constants = [constant(*each) for each in ((0.0, 0.0), (-1.0, 0.3), (2.0, -1.0))]
    assert constants == pytest.approx([constants[0]] * 3, rel=1e-9)
    assert constants[0] > 0
