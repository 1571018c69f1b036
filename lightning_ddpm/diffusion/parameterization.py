"""Parameterizations: what a network's output means, i.e. the noise, the image, the velocity or the posterior mean.

Given x_t, they are linear functions of each other. Each class here defines the training target and the conversion of an
output to x_0 and eps. Nothing else in the package depends on which one a network predicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion import process
from lightning_ddpm.diffusion.gaussian_path import GaussianPath, Timestep
from lightning_ddpm.diffusion.process import broadcast, posterior_coefficients, scale, snr
from lightning_ddpm.utils.errors import UserError


@dataclass(frozen=True)
class Denoised:
    """Predicted x_0 and eps with x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps; unpacks to these two.

    Attributes:
        x_0: (b, c, h, w) the image.
        eps: (b, c, h, w) the noise.
        nu: (b, c, h, w) position of the reverse variance between beta~ (0) and beta (1), on a log scale; ``None`` if
            the network does not predict it. Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.
    """

    x_0: Tensor
    eps: Tensor
    nu: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x_0, self.eps))


class Parameterization(ABC):
    """One meaning of the output. t in 1..T is an int, (b,) int64, or real where a solver stops between timesteps."""

    @abstractmethod
    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        """Return the training target (b, c, h, w) for the x_t made of ``x_0`` and ``eps``."""

    @abstractmethod
    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        """Convert the network's ``output`` for ``x_t`` to x_0 and eps."""

    @abstractmethod
    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        """Return the ratio of the output's squared error to that of x^_0; same shape as ``t``."""

    def network_input(self, schedule: GaussianPath, x_t: Tensor, t: Timestep) -> tuple[Tensor, Tensor]:
        """Return the network's arguments: x_t on the path's own scale, and t (b,). A preconditioning overrides it."""
        return process.to_path_scale(schedule, x_t, t), process.expand_timesteps(t, x_t)

    def check_path(self, schedule: GaussianPath) -> None:
        """Raise a UserError if this parameterization cannot be used with the path, whatever its terminal SNR."""
        return

    @final
    def check_schedule(self, schedule: GaussianPath) -> None:
        """Check that the output determines x_0 at every t of the schedule.

        Raises:
            UserError: at T the share of x_0 in the output is below float32's range.
        """
        if type(self) in schedule.checked:
            return
        self.check_path(schedule)
        if float(self.x_0_factor(schedule, schedule.T)) < torch.finfo(torch.float32).tiny:
            raise UserError(
                f"with zero or nearly zero terminal SNR (alpha_bar_T={schedule.alpha_bar_T:.3g}), x_T is pure noise "
                f"and {self} does not determine x_0 there; predict Velocity or X0 instead"
            )
        schedule.checked.add(type(self))

    def __repr__(self) -> str:
        return type(self).__name__


@final
class Epsilon(Parameterization):
    """The output is the noise eps; Ho et al. 2020 (arXiv:2006.11239), eq. 11-12."""

    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return eps

    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        return Denoised(process.eps_to_x_0(schedule, x_t, output, t), output)

    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        return snr(schedule, t)


@final
class X0(Parameterization):
    """The output is the image x_0; Ho et al. 2020, section 3.2."""

    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return x_0

    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        return Denoised(output, process.x_0_to_eps(schedule, x_t, output, t))

    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        return (schedule.alpha_bar_at(t) + 1).sign()


@final
class Velocity(Parameterization):
    """The output is v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0.

    Salimans & Ho 2022 (arXiv:2202.00512), section 4. It is well-conditioned at every t, also with zero terminal SNR.
    """

    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return process.compute_velocity(schedule, x_0, eps, t)

    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        return Denoised(scale(signal, x_t) - scale(noise, output), scale(noise, x_t) + scale(signal, output))

    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        return 1 + snr(schedule, t)


@final
class FlowVelocity(Parameterization):
    """The output is u = eps - x_0, the velocity dx/d(t/T) of ``RectifiedFlow``; Lipman et al. 2023 (arXiv:2210.02747).

    On other paths it is one more linear function of x_0 and eps. Flow matching is the objective ``Simple`` with it.
    """

    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        return eps - x_0

    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        x_0 = scale(1 / (signal + noise), x_t) - scale(noise / (signal + noise), output)
        return Denoised(x_0, x_0 + output)

    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        return (1 + schedule.signal_at(t) / schedule.noise_at(t)) ** 2


@final
class PosteriorMean(Parameterization):
    """The output is mu~_t, the mean of q(x_{t-1} | x_t, x_0); Ho et al. 2020, eq. 7-8.

    With L_simple it is the worst choice in their table 2.
    """

    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        x_0_factor, x_t_factor = posterior_coefficients(schedule, _previous_step(t), t)
        eps_factor = x_t_factor * schedule.noise_at(t)
        return scale(x_0_factor + x_t_factor * schedule.signal_at(t), x_0) + scale(eps_factor, eps)

    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        x_0_factor, x_t_factor = posterior_coefficients(schedule, _previous_step(t), t)
        x_0 = (output - scale(x_t_factor, x_t)) / broadcast(x_0_factor, x_t)
        return Denoised(x_0, process.x_0_to_eps(schedule, x_t, x_0, t))

    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        return posterior_coefficients(schedule, _previous_step(t), t)[0] ** 2


def _previous_step(t: Timestep) -> Timestep:
    """Return t - 1, and 0 (the data) for a real t below 1."""
    return (t - 1).clamp(min=0) if isinstance(t, Tensor) else t - 1
