"""A Gaussian random field of two correlated channels, 48x64, whose everything is known.

The best denoiser gives samples with its spectra and cross-correlation, and the flow's likelihood is the density.
"""

import pytest
import torch
from helpers.gaussian_field import GaussianField

from lightning_ddpm.diffusion import Cosine, Denoiser, DPMSolverPP
from lightning_ddpm.diffusion.samplers.ode import exact_divergence, flow_log_likelihood, hutchinson_divergence
from lightning_ddpm.metrics.fields import compute_radial_spectrum, compute_spectral_distance

PATH = Cosine(steps=100)


def denoiser(field: GaussianField) -> Denoiser:
    return Denoiser(lambda x_t, t: field.predict_eps(PATH, x_t, t), PATH, None, levels=None)


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
