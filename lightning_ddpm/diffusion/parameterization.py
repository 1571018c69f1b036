"""What a network's output means: the noise, the image, the velocity, or the mean of the posterior.

Given x_t, all are linear in each other, and here each says what to train towards, and what image and noise an output
stands for. Nothing else in the package knows which one a network predicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.process import (
    broadcast,
    compute_velocity,
    eps_to_x_0,
    posterior_coefficients,
    scale,
    snr,
    x_0_to_eps,
)
from lightning_ddpm.diffusion.schedule import NoiseSchedule, Timestep
from lightning_ddpm.utils.errors import UserError


@dataclass(frozen=True)
class Denoised:
    """A guess at what ``x_t`` is made of: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps; unpacks to the two.

    Attributes:
        x_0: (b, c, h, w) the image.
        eps: (b, c, h, w) the noise.
        nu: (b, c, h, w) where the reverse variance lies between beta~ (0) and beta (1), on a log scale; ``None`` from a
            network that does not say. Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.
    """

    x_0: Tensor
    eps: Tensor
    nu: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x_0, self.eps))


class Parameterization(ABC):
    """One meaning of the output. Steps t in 1..T: an int, (b,) int64, or real where a solver stops between steps."""

    @abstractmethod
    def target(self, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        """(b, c, h, w): what the output should be for x_t made of ``x_0`` and ``eps``."""

    @abstractmethod
    def to_denoised(self, schedule: NoiseSchedule, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        """The image and the noise that ``output`` says ``x_t`` is made of."""

    @abstractmethod
    def x_0_factor(self, schedule: NoiseSchedule, t: Timestep) -> Tensor:
        """How many times the squared error of x^_0 the squared error of the output is; shaped as ``t``."""

    @final
    def check_schedule(self, schedule: NoiseSchedule) -> None:
        """Refuse a schedule under which the output would not determine x_0.

        Raises:
            UserError: at T this prediction has no share of x_0 that float32 could hold.
        """
        if type(self) in schedule.checked:
            return
        if float(self.x_0_factor(schedule, schedule.T)) < torch.finfo(torch.float32).tiny:
            raise UserError(
                f"under zero terminal SNR, or next to it (alpha_bar_T={schedule.alpha_bar_T:.3g}), x_T is "
                f"nothing but noise, and {self} says nothing about x_0 there; predict Velocity or Data instead"
            )
        schedule.checked.add(type(self))

    def __repr__(self) -> str:
        return type(self).__name__


@final
class Epsilon(Parameterization):
    """The noise eps; Ho et al. 2020 (arXiv:2006.11239), eq. 11-12."""

    def target(self, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return eps

    def to_denoised(self, schedule: NoiseSchedule, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        return Denoised(eps_to_x_0(schedule, x_t, output, t), output)

    def x_0_factor(self, schedule: NoiseSchedule, t: Timestep) -> Tensor:
        return snr(schedule, t)


@final
class X0(Parameterization):
    """The image x_0 itself; Ho et al. 2020, section 3.2."""

    def target(self, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return x_0

    def to_denoised(self, schedule: NoiseSchedule, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        return Denoised(output, x_0_to_eps(schedule, x_t, output, t))

    def x_0_factor(self, schedule: NoiseSchedule, t: Timestep) -> Tensor:
        return (schedule.alpha_bar[t] + 1).sign()


@final
class Velocity(Parameterization):
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0; Salimans & Ho 2022 (arXiv:2202.00512), section 4.

    Well-conditioned at every t, zero terminal SNR included.
    """

    def target(self, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return compute_velocity(schedule, x_0, eps, t)

    def to_denoised(self, schedule: NoiseSchedule, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        return Denoised(scale(signal, x_t) - scale(noise, output), scale(noise, x_t) + scale(signal, output))

    def x_0_factor(self, schedule: NoiseSchedule, t: Timestep) -> Tensor:
        return 1 + snr(schedule, t)


@final
class PosteriorMean(Parameterization):
    """mu~_t, the mean of q(x_{t-1} | x_t, x_0); Ho et al. 2020, eq. 7-8. The worst in their table 2 on L_simple."""

    def target(self, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        of_x_0, of_x_t = posterior_coefficients(schedule, _previous_step(t), t)
        of_eps = of_x_t * schedule.noise_at(t)
        return scale(of_x_0 + of_x_t * schedule.signal_at(t), x_0) + scale(of_eps, eps)

    def to_denoised(self, schedule: NoiseSchedule, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        of_x_0, of_x_t = posterior_coefficients(schedule, _previous_step(t), t)
        x_0 = (output - scale(of_x_t, x_t)) / broadcast(of_x_0, x_t)
        return Denoised(x_0, x_0_to_eps(schedule, x_t, x_0, t))

    def x_0_factor(self, schedule: NoiseSchedule, t: Timestep) -> Tensor:
        return posterior_coefficients(schedule, _previous_step(t), t)[0] ** 2


def _previous_step(t: Timestep) -> Timestep:
    """t - 1, and the data for a real t below 1."""
    return (t - 1).clamp(min=0) if isinstance(t, Tensor) else t - 1
