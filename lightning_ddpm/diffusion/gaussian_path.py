"""Gaussian paths from data to noise: x_t = alpha(t) x_0 + sigma(t) eps, for t in [1, T], and x_0 itself at t = 0.

Divided by sqrt(alpha^2 + sigma^2), every path is variance-preserving: signal x_0 + noise eps, signal^2 + noise^2 = 1.
It is then the angle phi = atan(sigma / alpha) between data and noise. Two paths differ in their speed phi(t) and in
their scale sqrt(alpha^2 + sigma^2), and in nothing else (Karras et al. 2022, arXiv:2206.00364, section 2; Kingma & Gao
2023, arXiv:2303.00848). Objectives, samplers and likelihoods therefore work on the variance-preserving form; the scale
matters only to the network's input, which :meth:`Parameterization.network_input` makes.

Samplers visit whole timesteps t = 1..T. :class:`NoiseSchedule` is the path of a discrete chain, given on this grid; a
:class:`ContinuousPath` is given at every real t. To write one, subclass it with ``coefficients`` and ``time_at``.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.utils.errors import UserError

Timestep = Tensor | int
"""A timestep t in 0..T or a (b,) tensor of them; where documented, also real-valued t, as a floating-point tensor."""


MAX_STEPS = 1_000_000
"""Largest T; the tables of a schedule take 40 MB then."""


class GaussianPath(nn.Module, ABC):
    """The coefficients of x_t in the variance-preserving form, as functions of t.

    What the methods ``..._at`` return has the shape of ``t``. For an int t it is on the host: in a sampler, whose batch
    has one timestep, no coefficient costs the GPU a kernel or the host a wait.

    Attributes:
        alpha_bar_T: the signal's share of the variance at T.
        checked: the parameterizations known to work with this path. Both are on the host, so that no check has to read
            from a GPU.
    """

    alpha_bar_T: float  # noqa: N815  # the paper's symbol

    def __init__(self) -> None:
        super().__init__()
        self.checked: set[type] = set()

    @property
    @abstractmethod
    def T(self) -> int:
        """Number of timesteps; t = T is the noisiest, from which sampling starts."""

    @property
    @final
    def ends_in_noise(self) -> bool:
        """Whether x_T has no signal, or less than float32 can hold: T is then infinitely far in lambda and sigma."""
        return self.alpha_bar_T < torch.finfo(torch.float32).tiny

    @abstractmethod
    def angle_at(self, t: Timestep) -> Tensor:
        """Return phi_t = atan(sigma / alpha), from 0 at the data up to pi/2, where no signal is left; t may be real."""

    @abstractmethod
    def time_at(self, angle: Tensor) -> Tensor:
        """Return the real t at which the angle is phi: :meth:`angle_at` solved for t."""

    @abstractmethod
    def signal_at(self, t: Timestep) -> Tensor:
        """Return cos(phi_t) = alpha / sqrt(alpha^2 + sigma^2), the factor of x_0; t may be real."""

    @abstractmethod
    def noise_at(self, t: Timestep) -> Tensor:
        """Return sin(phi_t) = sigma / sqrt(alpha^2 + sigma^2), the factor of eps; t may be real."""

    @abstractmethod
    def alpha_bar_at(self, t: Timestep) -> Tensor:
        """Return cos(phi_t)^2, the signal's share of the variance; t may be real."""

    @abstractmethod
    def beta_at(self, t: Timestep) -> Tensor:
        """Return beta_t, the variance of q(x_t | x_{t-1}); t is in 1..T."""

    @abstractmethod
    def scale_at(self, t: Timestep) -> Tensor | None:
        """Return sqrt(alpha^2 + sigma^2); t may be real. ``None`` if it is 1 everywhere."""

    @abstractmethod
    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Sample n times uniformly, (n,) on the generator's device: int64 on a grid, else float32."""

    @abstractmethod
    def nearest_time(self, t: Tensor) -> Tensor:
        """Return the times nearest to real t that training may use, in [1, T]: int64 on a grid, else float32."""


def choose_precision(device: torch.device) -> torch.dtype:
    """Return the precision of coefficients: float64 wherever the device has it, i.e. not on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


class ContinuousPath(GaussianPath):
    """A path given by alpha(t) and sigma(t) as functions of real t.

    Args:
        steps: T. Time runs from 0 to T, and whole timesteps are T equal parts of it.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        if not 2 <= steps <= MAX_STEPS:
            raise UserError(
                f"{type(self).__name__} divides time into 2 to {MAX_STEPS:,} steps, got steps={steps}; 1000 is usual"
            )
        self._steps = steps
        self.alpha_bar_T = float(self.alpha_bar_at(steps))

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at real t, in its shape and precision; 1 and 0 at t = 0."""

    @property
    @final
    def T(self) -> int:
        return self._steps

    @final
    def _coefficients(self, t: Timestep) -> tuple[Tensor, Tensor]:
        if isinstance(t, Tensor):
            return self.coefficients(t.to(choose_precision(t.device)))
        return self.coefficients(torch.tensor(t, dtype=torch.float64))

    @final
    def angle_at(self, t: Timestep) -> Tensor:
        alpha, sigma = self._coefficients(t)
        return torch.atan2(sigma, alpha)

    @final
    def signal_at(self, t: Timestep) -> Tensor:
        alpha, sigma = self._coefficients(t)
        return alpha / torch.hypot(alpha, sigma)

    @final
    def noise_at(self, t: Timestep) -> Tensor:
        alpha, sigma = self._coefficients(t)
        return sigma / torch.hypot(alpha, sigma)

    @final
    def alpha_bar_at(self, t: Timestep) -> Tensor:
        return self.signal_at(t) ** 2

    @final
    def beta_at(self, t: Timestep) -> Tensor:
        return 1 - self.alpha_bar_at(t) / self.alpha_bar_at(t - 1)

    @final
    def scale_at(self, t: Timestep) -> Tensor:
        return torch.hypot(*self._coefficients(t))

    @final
    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        share = torch.rand(n, device=generator.device, generator=generator)
        return 1 + (self.T - 1) * share

    @final
    def nearest_time(self, t: Tensor) -> Tensor:
        return t.float().clamp(1, self.T)


@final
class VarianceExploding(ContinuousPath):
    """alpha = 1, and sigma from ``sigma_min`` at t = 1 to ``sigma_max`` at T; Karras et al. 2022 (arXiv:2206.00364).

    sigma^(1/rho) rises linearly (their eq. 5), so that equal steps in t, as ``uniform_spacing`` makes them, are the
    noise levels of their sampler. Use it with the parameterization EDM.

    Args:
        sigma_min, sigma_max: the lowest and the highest noise level, for images in [-1, 1].
        rho: how much shorter the steps are at low noise levels.
        steps: T.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, steps: int = 1000) -> None:
        if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf):
            raise UserError(
                "VarianceExploding needs 0 < sigma_min < sigma_max and rho > 0, all finite, got "
                f"{sigma_min}, {sigma_max} and {rho}; Karras et al. use 0.002, 80 and 7"
            )
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._ends = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        super().__init__(steps)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._ends
        root = first + (t - 1).clamp(min=0) / (self.T - 1) * (last - first)
        return torch.ones_like(t), torch.where(t < 1, t * self.sigma_min, root**self.rho)

    def time_at(self, angle: Tensor) -> Tensor:
        sigma, (first, last) = angle.tan(), self._ends
        t = 1 + (self.T - 1) * (sigma ** (1 / self.rho) - first) / (last - first)
        return torch.where(sigma < self.sigma_min, sigma / self.sigma_min, t)

    def extra_repr(self) -> str:
        return f"sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}, rho={self.rho:g}, T={self.T}"


@final
class RectifiedFlow(ContinuousPath):
    """The straight line x_t = (1 - t/T) x_0 + t/T eps; Liu et al. 2023 (arXiv:2209.03003), Lipman et al. 2023.

    In Lipman et al. (arXiv:2210.02747) time runs the other way. x_T is pure noise, so the network predicts
    FlowVelocity, Velocity or X0.

    Args:
        steps: T; the network gets t in [0, T], as in Stable Diffusion 3 with 1000.
    """

    def __init__(self, steps: int = 1000) -> None:
        super().__init__(steps)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t / self.T, t / self.T

    def time_at(self, angle: Tensor) -> Tensor:
        signal, noise = angle.cos(), angle.sin()
        return self.T * noise / (signal + noise)

    def extra_repr(self) -> str:
        return f"T={self.T}"
