"""Data with known distributions: mixtures of Gaussians, and the noise that an optimal network predicts for them."""

import math

import torch
from torch import Tensor

from lightning_ddpm.diffusion import EDM, Denoiser, GaussianPath, Parameterization


class Mixture:
    """A mixture of Gaussians in the plane; images are (b, 1, 1, 2), float64.

    Args:
        weights: (k,), with sum 1.
        means: (k, 2).
        covariances: (k, 2, 2).
    """

    def __init__(self, weights: list[float], means: list[list[float]], covariances: list[list[list[float]]]) -> None:
        self.weights, self.means, self.covariances = (
            torch.tensor(each, dtype=torch.float64) for each in (weights, means, covariances)
        )

    def mean(self) -> Tensor:
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        offsets = self.means - self.mean()
        return torch.einsum("k,kij->ij", self.weights, self.covariances + offsets[:, :, None] * offsets[:, None, :])

    def log_density(self, x: Tensor, signal: Tensor | float = 1.0, noise: Tensor | float = 0.0) -> Tensor:
        """Compute log q(x_t) (b,) of x_t = signal x_0 + noise eps."""
        return torch.logsumexp(self._components(x, signal, noise)[0], dim=1)

    def eps(self, schedule: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
        """Compute E[eps | x_t] = -noise_t grad log q(x_t); t (b,) holds one timestep, an integer or real."""
        signal, noise = schedule.signal_at(t[0]), schedule.noise_at(t[0])
        logs, gradients = self._components(x, signal, noise)
        return (noise * torch.einsum("bk,bki->bi", logs.softmax(1), gradients)).reshape(x.shape)

    def denoiser(self, schedule: GaussianPath) -> Denoiser:
        return Denoiser(lambda x, t: self.eps(schedule, x, t), schedule, clip=None)

    def x_0(self, schedule: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
        """Compute E[x_0 | x_t], also where no signal is left; t (b,) holds one time, an integer or real."""
        signal, noise = schedule.signal_at(t[0]), schedule.noise_at(t[0])
        logs, gradients = self._components(x, signal, noise)
        of_each = self.means + signal * torch.einsum("kij,bkj->bki", self.covariances, gradients)
        return torch.einsum("bk,bki->bi", logs.softmax(1), of_each).reshape(x.shape)

    def denoiser_for(self, path: GaussianPath, parameterization: Parameterization) -> Denoiser:
        """Return the optimal denoiser as a network of any parameterization, with its inputs and its output."""

        def network(x: Tensor, time: Tensor) -> Tensor:
            if isinstance(parameterization, EDM):  # x / c_in for sigma = e^(4 c_noise); Karras et al. 2022, table 1
                sigma = (4 * time[0]).exp()
                t = path.time_at(sigma.atan()).expand(len(x))
                x = x * (sigma**2 + parameterization.sigma_data**2).sqrt() * path.signal_at(t[0])
            else:
                t, factor = time, path.scale_at(time[0])
                x = x if factor is None else x / factor
            return parameterization.target(path, self.x_0(path, x, t), self.eps(path, x, t), t)

        return Denoiser(network, path, None, parameterization)

    def _components(self, x: Tensor, signal: Tensor | float, noise: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the log density of each weighted Gaussian (b, k), and covariance^-1 (x - mean) (b, k, 2)."""
        offsets = x.reshape(-1, 1, 2) - signal * self.means
        covariances = signal**2 * self.covariances + noise**2 * torch.eye(2, dtype=torch.float64)
        gradients = torch.einsum("kij,bkj->bki", covariances.inverse(), offsets)
        logs = self.weights.log() - covariances.logdet() / 2 - (offsets * gradients).sum(-1) / 2 - math.log(2 * math.pi)
        return logs, gradients


TWO = Mixture([0.3, 0.7], [[-0.7, 0.2], [0.5, -0.3]], [[[0.02, 0.01], [0.01, 0.03]], [[0.05, -0.02], [-0.02, 0.02]]])
ONE = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.1], [0.1, 0.09]]])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal noise from a new generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
