"""A Gaussian random field of two correlated channels, 48x64, whose everything is known.

The best denoiser gives samples with its spectra and cross-correlation, the flow's likelihood is the density, and every
term of the variational bound has a closed form.
"""

import math

import pytest
import torch

from benchmarks.gaussian_field import GaussianField
from lightning_ddpm.diffusion import Cosine, Denoiser, DPMSolverPP, FixedLarge, FixedSmall, ReverseVariance, elbo
from lightning_ddpm.diffusion.samplers.ode import exact_divergence, flow_log_likelihood, hutchinson_divergence
from lightning_ddpm.metrics.fields import compute_radial_spectrum, compute_spectral_distance

PATH = Cosine(steps=100)


def denoiser(field: GaussianField, levels: int | None = None) -> Denoiser:
    return Denoiser(lambda x_t, t: field.predict_eps(PATH, x_t, t), PATH, None, levels=levels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_have_the_spectra_and_the_cross_correlation() -> None:
    field = GaussianField()
    x_T = torch.randn(48, 2, 48, 64, generator=seeded(0), dtype=torch.float64)
    samples = DPMSolverPP(60).sample(denoiser(field), x_T)
    data = field.sample(48, seeded(1))
    spectra = [compute_radial_spectrum(each).mean(0) for each in (samples, data)]
    assert compute_spectral_distance(*spectra).max() < 0.35  # dB; two sets of 48 real fields differ by 0.2
    correlation, expected = (float((x[:, 0] * x[:, 1]).mean()) for x in (samples, data))
    exact = float(field.covariance[..., 0, 1].mean())
    assert expected == pytest.approx(exact, abs=0.01)
    assert correlation == pytest.approx(exact, abs=0.015)


def test_the_likelihood_of_the_flow_is_the_density() -> None:
    small = GaussianField(4, 6)
    alpha_bar = float(PATH.alpha_bar[1])
    noisy = {"alpha_bar": alpha_bar}

    def sample(field: GaussianField, n: int) -> torch.Tensor:
        eps = torch.randn(n, 2, field.height, field.width, generator=seeded(2), dtype=torch.float64)
        return alpha_bar**0.5 * field.sample(n, seeded(3)) + (1 - alpha_bar) ** 0.5 * eps

    x = sample(small, 3)
    found = flow_log_likelihood(denoiser(small), x, exact_divergence, 1e-6)
    torch.testing.assert_close(found, small.log_density(x, **noisy), rtol=0, atol=2e-3)

    field = GaussianField()
    x = sample(field, 2)
    probe = torch.randint(0, 2, x.shape, generator=seeded(4)).double() * 2 - 1
    found = flow_log_likelihood(denoiser(field), x, hutchinson_divergence(probe), 1e-4)
    torch.testing.assert_close(found / x[0].numel(), field.log_density(x, **noisy) / x[0].numel(), rtol=0, atol=0.02)


LEVELS = 2**16 + 1
"""So many levels in [-1, 1] that a level's probability is its density times the distance of two."""


def compute_bound(field: GaussianField, variance: str) -> tuple[float, list[float]]:
    """Return the means of L_T and of L_{t-1} for t = 1..T over all fields, in bits/dim, given the best denoiser.

    The mean of |x_0 - E[x_0 | x_t]|^2 is the trace of the covariance of x_0 given x_t, S - alpha_bar S M^-1 S with
    M = alpha_bar S + (1 - alpha_bar) I.
    """
    S, alpha_bar = field.covariance, [float(each) for each in PATH.alpha_bar]

    def mean_trace(matrices: torch.Tensor) -> float:
        return float(matrices.diagonal(dim1=-2, dim2=-1).mean())

    def mean_error(t: int) -> float:
        return mean_trace(S - alpha_bar[t] * S @ torch.linalg.inv(field.noised_covariance(alpha_bar[t])) @ S)

    def betas(t: int) -> tuple[float, float]:
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        return beta, beta * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])

    small = betas(2)[1]
    decoder = 0.5 * math.log(2 * math.pi * small) + mean_error(1) / (2 * small) - math.log(2 / (LEVELS - 1))
    terms = [decoder]
    for t in range(2, PATH.T + 1):
        beta, tilde = betas(t)
        sigma2 = beta if variance == "FixedLarge" else tilde
        factor = math.sqrt(alpha_bar[t - 1]) * beta / (1 - alpha_bar[t])
        ratio = tilde / sigma2
        terms.append(0.5 * (ratio - 1 - math.log(ratio)) + factor**2 * mean_error(t) / (2 * sigma2))
    last = alpha_bar[-1]
    prior = 0.5 * (last * mean_trace(S) + (1 - last) - 1 - math.log(1 - last))
    return prior / math.log(2), [each / math.log(2) for each in terms]


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall()], ids=repr)
def test_the_variational_bound_is_that_of_the_closed_form(variance: ReverseVariance) -> None:
    field, n, generator = GaussianField(deviation=0.15), 12, seeded(5)
    x_0 = field.sample(n, seeded(6))
    found = elbo(
        denoiser(field, LEVELS), variance, x_0, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)
    )
    prior, terms = compute_bound(field, repr(variance))
    assert float(found.prior.mean()) == pytest.approx(prior, rel=0.05)
    measured = found.terms.mean(0).tolist()
    assert measured[0] == pytest.approx(terms[0], rel=0.002)
    assert measured[1:] == pytest.approx(terms[1:], rel=0.08)
    assert sum(measured) == pytest.approx(sum(terms), rel=0.002)
    # the bound is one: the mean of -log2 of the density, with the levels' distance as its unit, lies below
    nats = 0.5 * torch.logdet(2 * math.pi * math.e * field.covariance).sum() / (2 * field.height * field.width)
    entropy = (float(nats) - math.log(2 / (LEVELS - 1))) / math.log(2)
    assert entropy < prior + sum(terms) < entropy + 1
