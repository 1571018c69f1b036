"""A periodic Gaussian random field of two correlated channels whose spectra, density and best denoiser are known.

In the orthonormal Fourier basis the values of a frequency are independent of all others, and the two channels have the
covariance S(f) = [[P_1, r sqrt(P_1 P_2)], [r sqrt(P_1 P_2), P_2]], with P_i(f) proportional to (1 + (f / f_i)^2)^-a_i.
"""

import math

import torch
from torch import Tensor

from lightning_ddpm.diffusion.gaussian_path import GaussianPath, Timestep
from lightning_ddpm.diffusion.process import scale

KNEES, EXPONENTS, CORRELATION = (0.06, 0.12), (1.5, 1.0), 0.7
"""f_i in cycles per pixel, a_i, and r."""


class GaussianField:
    """The field on a grid of height x width, in float64.

    Args:
        height, width: sides of the grid.
        deviation: standard deviation of the values in each channel.

    Attributes:
        covariance: (h, w, 2, 2), S(f) of each frequency of :func:`torch.fft.fft2`, which is real.
    """

    def __init__(self, height: int = 48, width: int = 64, deviation: float = 1.0) -> None:
        self.height, self.width = height, width
        y, x = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
        f = (y[:, None].square() + x.square()).sqrt()
        powers = [(1 + (f / knee).square()) ** -a for knee, a in zip(KNEES, EXPONENTS, strict=True)]
        first, second = (deviation**2 * power / power.mean() for power in powers)
        cross = CORRELATION * (first * second).sqrt()
        self.covariance = torch.stack([first, cross, cross, second], -1).unflatten(-1, (2, 2))

    def filter(self, factors: Tensor, x: Tensor) -> Tensor:
        """Multiply fields (n, 2, h, w) by matrices (h, w, 2, 2) or (n, h, w, 2, 2) in the Fourier basis."""
        spectrum = torch.fft.fft2(x.double(), norm="ortho")
        factors = factors.to(spectrum.dtype)
        pattern = "nhwij,njhw->nihw" if factors.ndim == 5 else "hwij,njhw->nihw"
        return torch.fft.ifft2(torch.einsum(pattern, factors, spectrum), norm="ortho").real

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n fields (n, 2, h, w): white noise times the Cholesky factor of the covariance."""
        noise = torch.randn(n, 2, self.height, self.width, dtype=torch.float64, generator=generator)
        return self.filter(torch.linalg.cholesky(self.covariance), noise)

    def noised_covariance(self, alpha_bar: Tensor | float) -> Tensor:
        """Return the covariance (h, w, 2, 2) of sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps; (n, ...) for (n,)."""
        alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64)[..., None, None, None, None]
        return alpha_bar * self.covariance + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)

    def log_density(self, x_t: Tensor, alpha_bar: float = 1.0) -> Tensor:
        """Return log of the density, (n,) nats, of sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps at x_t."""
        covariance = self.noised_covariance(alpha_bar)
        quadratic = (x_t.double() * self.filter(torch.linalg.inv(covariance), x_t)).flatten(1).sum(1)
        return -0.5 * (quadratic + torch.logdet(covariance).sum() + x_t[0].numel() * math.log(2 * math.pi))

    def predict_eps(self, path: GaussianPath, x_t: Tensor, t: Timestep) -> Tensor:
        """Return E[eps | x_t] (n, 2, h, w): the network that no training can beat, as :class:`Denoiser` calls it."""
        alpha_bar = path.alpha_bar_at(t)
        inverse = self.filter(torch.linalg.inv(self.noised_covariance(alpha_bar)), x_t).to(x_t.dtype)
        return scale((1 - alpha_bar).sqrt(), inverse)
