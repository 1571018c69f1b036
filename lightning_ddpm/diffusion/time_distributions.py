"""Distributions of the time t of a training step that put more weight on some noise levels than on others.

They sample real t on a continuous path, and the nearest timestep on a noise schedule. The weight of a loss is 1: the
distribution itself is the weighting, in training and in validation.
"""

import math
from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.gaussian_path import GaussianPath, choose_precision
from lightning_ddpm.diffusion.timesteps import Gather, TimestepSampler
from lightning_ddpm.utils.errors import UserError


class TimeDistribution(TimestepSampler):
    """Samples t from a fixed distribution."""

    def __init__(self) -> None:
        super().__init__()
        self._path: list[GaussianPath] = []  # in a list, as the model's path is no submodule of this one

    def setup(self, path: GaussianPath) -> None:
        self.check_path(path)
        self._path = [path]

    def check_path(self, path: GaussianPath) -> None:
        """Raise a UserError if the distribution does not exist on the path."""
        return

    @abstractmethod
    def sample_time(self, path: GaussianPath, n: int, generator: torch.Generator) -> Tensor:
        """Sample n real times (n,) on the generator's device, not yet limited to [1, T]."""

    @abstractmethod
    def quantile(self, path: GaussianPath, share: Tensor) -> Tensor:
        """Return the real times (n,) below which these shares (n,) of the distribution lie, not yet limited."""

    @final
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t = self._path[0].nearest_time(self.sample_time(self._path[0], n, generator))
        return t, torch.ones(n, device=generator.device)

    @final
    def stratify(self, path: GaussianPath, n: int, generator: torch.Generator) -> Tensor:
        strata = torch.arange(n, device=generator.device)
        share = (strata + torch.rand(n, device=generator.device, generator=generator)) / n
        return path.nearest_time(self.quantile(path, share.to(choose_precision(share.device)).clamp(1e-6, 1 - 1e-6)))

    @final
    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        pass


@final
class LogNormal(TimeDistribution):
    """ln sigma ~ N(mean, std^2) for the noise level sigma = noise / signal; Karras et al. 2022 (arXiv:2206.00364).

    Args:
        mean, std: of ln sigma; the defaults are theirs for images in [-1, 1].
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        self.mean, self.std = _check_normal("LogNormal", mean, std)

    def sample_time(self, path: GaussianPath, n: int, generator: torch.Generator) -> Tensor:
        return self._time_at(path, _randn(n, generator))

    def quantile(self, path: GaussianPath, share: Tensor) -> Tensor:
        return self._time_at(path, torch.special.ndtri(share))

    def _time_at(self, path: GaussianPath, z: Tensor) -> Tensor:
        return path.time_at((self.mean + self.std * z).exp().atan())

    def extra_repr(self) -> str:
        return f"mean={self.mean:g}, std={self.std:g}"


@final
class LogitNormal(TimeDistribution):
    """ln(u / (1 - u)) ~ N(mean, std^2) for u = t/T; Esser et al. 2024 (arXiv:2403.03206), eq. 19.

    Args:
        mean, std: of the logit; 0 and 1 for Stable Diffusion 3. A higher mean puts more weight on noisy images.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.mean, self.std = _check_normal("LogitNormal", mean, std)

    def sample_time(self, path: GaussianPath, n: int, generator: torch.Generator) -> Tensor:
        return self._time_at(path, _randn(n, generator))

    def quantile(self, path: GaussianPath, share: Tensor) -> Tensor:
        return self._time_at(path, torch.special.ndtri(share))

    def _time_at(self, path: GaussianPath, z: Tensor) -> Tensor:
        return path.T * (self.mean + self.std * z).sigmoid()

    def extra_repr(self) -> str:
        return f"mean={self.mean:g}, std={self.std:g}"


@final
class UniformLambda(TimeDistribution):
    """lambda = ln(signal / noise) uniform between its values at t = 1 and T; Kingma et al. 2021 (arXiv:2107.00630).

    With it, the unweighted squared error of the noise is the variational bound up to a factor (their eq. 17).
    """

    def check_path(self, path: GaussianPath) -> None:
        if path.ends_in_noise:
            raise UserError(
                f"UniformLambda needs a finite lambda at T, and {type(path).__name__} ends without signal; take "
                "LogitNormal or UniformTimesteps"
            )

    def sample_time(self, path: GaussianPath, n: int, generator: torch.Generator) -> Tensor:
        return self.quantile(path, torch.rand(n, device=generator.device, generator=generator))

    def quantile(self, path: GaussianPath, share: Tensor) -> Tensor:
        first, last = (float((path.noise_at(t) / path.signal_at(t)).log()) for t in (1, path.T))
        return path.time_at((first + (last - first) * share).exp().atan())


def _check_normal(name: str, mean: float, std: float) -> tuple[float, float]:
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise UserError(f"{name} needs a finite mean and 0 < std, got mean={mean} and std={std}")
    return mean, std


def _randn(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, device=generator.device, generator=generator)
