"""EDM's preconditioning: a network whose input and target have unit variance at every noise level.

Karras et al. 2022 (arXiv:2206.00364), section 5 and table 1. With x = x_0 + sigma eps the prediction of x_0 is

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),

where F is the network. The formulas below are for the variance-preserving x_t = signal x_0 + noise eps, i.e. for
x = x_t / signal and sigma = noise / signal, so that they hold on every path; ``total`` is (noise^2 + signal^2
sigma_data^2)^(1/2), the standard deviation of x_t.
"""

import math
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.formatting import format_settings
from lightning_ddpm.diffusion.gaussian_path import ContinuousPath, GaussianPath, Timestep
from lightning_ddpm.diffusion.parameterization import Denoised, Parameterization
from lightning_ddpm.diffusion.process import expand_timesteps, scale
from lightning_ddpm.utils.errors import UserError


@final
class EDM(Parameterization):
    """The output is F: x_0 at high noise levels, the noise at low ones, in unit variance; Karras et al. 2022, eq. 7.

    The network gets c_in x and, in place of t, c_noise = ln(sigma) / 4. Their loss weight is 1 / c_out^2 on the squared
    error of D, which is the squared error of F: the objective ``Simple``. With sigma_data = 1, F is -v of ``Velocity``.

    Args:
        sigma_data: standard deviation of the images' values in [-1, 1].
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < math.inf:
            raise UserError(f"EDM's sigma_data must be above 0 and finite, got {sigma_data}; Karras et al. use 0.5")
        self.sigma_data = sigma_data

    def check_path(self, schedule: GaussianPath) -> None:
        """Check that the noise level is finite, and known at every real t."""
        if not isinstance(schedule, ContinuousPath):
            raise UserError(
                f"EDM conditions the network on the noise level, and {type(schedule).__name__} has integer timesteps; "
                "use VarianceExploding as the schedule, or Velocity as the parameterization"
            )
        if schedule.ends_in_noise:
            raise UserError(
                f"EDM conditions the network on ln(sigma) / 4, which is infinite at the end of "
                f"{type(schedule).__name__}; use VarianceExploding as the schedule, or predict FlowVelocity"
            )

    def network_input(self, schedule: GaussianPath, x_t: Tensor, t: Timestep) -> tuple[Tensor, Tensor]:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        c_noise = (noise / signal).log() / 4
        time = c_noise.to(x_t.dtype) if isinstance(t, Tensor) else float(c_noise)  # a number costs the GPU no wait
        return scale(1 / self._total(signal, noise), x_t), expand_timesteps(time, x_t)

    def target(self, schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        total = self._total(signal, noise)
        return scale(noise / (self.sigma_data * total), x_0) - scale(signal * self.sigma_data / total, eps)

    def to_denoised(self, schedule: GaussianPath, x_t: Tensor, output: Tensor, t: Timestep) -> Denoised:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        total = self._total(signal, noise)
        x_0 = scale(signal * (self.sigma_data / total) ** 2, x_t) + scale(noise * self.sigma_data / total, output)
        # (x_t - signal x_0) / noise, written without the difference, which loses its digits at low noise levels
        eps = scale(noise / total**2, x_t) - scale(signal * self.sigma_data / total, output)
        return Denoised(x_0, eps)

    def x_0_factor(self, schedule: GaussianPath, t: Timestep) -> Tensor:
        signal, noise = schedule.signal_at(t), schedule.noise_at(t)
        return (self._total(signal, noise) / (noise * self.sigma_data)) ** 2

    def _total(self, signal: Tensor, noise: Tensor) -> Tensor:
        return torch.hypot(noise, signal * self.sigma_data)

    __repr__ = format_settings
