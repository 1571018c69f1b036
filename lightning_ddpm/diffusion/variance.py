"""The variance Sigma_t = sigma_t^2 I of the reverse step p(x_s | x_t), fixed or learned.

Ho et al. 2020 (arXiv:2006.11239), section 3.2; Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.1.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.gaussian_path import GaussianPath, Timestep
from lightning_ddpm.diffusion.parameterization import Denoised
from lightning_ddpm.diffusion.process import broadcast, posterior_variance, transition_variance
from lightning_ddpm.diffusion.schedule import NoiseSchedule
from lightning_ddpm.utils.errors import UserError


class ReverseVariance(ABC):
    """The variance Sigma_t = sigma_t^2 I of p(x_s | x_t)."""

    @abstractmethod
    def variance(self, schedule: GaussianPath, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        """Return sigma^2 of the step from t to s: a scalar in the schedule's precision, or (b, c, h, w) if learned.

        Args:
            schedule: the noise schedule.
            s: the timestep after the step, 0 <= s < t.
            t: the timestep before the step.
            denoised: the network's prediction for x_t.
        """

    @abstractmethod
    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        """Return log sigma_t^2 of the step from t to t - 1 in the ELBO; finite at t = 1, where the decoder uses it.

        Args:
            schedule: the noise schedule, T >= 2.
            t: a timestep in 1..T or (b,) of them.
            denoised: the network's prediction for x_t.

        Returns:
            The same shape as ``t``, or (b, c, h, w) if the variance is learned.
        """

    def __repr__(self) -> str:
        return type(self).__name__


@final
class FixedLarge(ReverseVariance):
    """beta_t, which is optimal for x_0 ~ N(0, I); Ho et al. 2020, section 3.2.

    It is the best choice with all 1000 steps (FID 3.17) and a very bad one with 100 or fewer. The decoder (t = 1) uses
    beta~_2, as in Ho et al.'s code, because beta_1 is far too wide for a decoder.
    """

    def variance(self, schedule: GaussianPath, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        return transition_variance(schedule, s, t)

    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        t = torch.as_tensor(t, device=schedule.beta.device)
        return torch.where(t == 1, posterior_log_variance(schedule, t), schedule.beta[t].log())


@final
class FixedSmall(ReverseVariance):
    """beta~_t: optimal for a known x_0, and the better choice with few steps; Ho et al. 2020, section 3.2."""

    def variance(self, schedule: GaussianPath, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        return posterior_variance(schedule, s, t)

    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        return posterior_log_variance(schedule, t)


@final
class LearnedRange(ReverseVariance):
    """exp(nu log beta_t + (1 - nu) log beta~_t), nu predicted for every pixel; Nichol & Dhariwal 2021, eq. 15.

    The network outputs twice the images' channels, and an objective that includes L_vlb trains the second half.
    """

    def variance(self, schedule: GaussianPath, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        large, small = transition_variance(schedule, s, t), posterior_variance(schedule, s, t)
        return _interpolate_log_variance(small.log(), large.log(), denoised).exp()

    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        return _interpolate_log_variance(posterior_log_variance(schedule, t), schedule.beta[t].log(), denoised)


def posterior_log_variance(schedule: NoiseSchedule, t: Timestep) -> Tensor:
    """Return log beta~_t, shaped as ``t``; at t = 1, where beta~ is 0, the value at t = 2, as in Ho et al.'s code."""
    if schedule.T < 2:
        raise UserError("the ELBO's decoder takes its variance from t = 2; give the schedule at least 2 steps, got 1")
    t = torch.as_tensor(t, device=schedule.beta.device).clamp(min=2)
    return posterior_variance(schedule, t - 1, t).log()


def _interpolate_log_variance(small: Tensor, large: Tensor, denoised: Denoised | None) -> Tensor:
    """Return nu large + (1 - nu) small."""
    if denoised is None or denoised.nu is None:
        raise UserError(
            "LearnedRange needs a network that also predicts the variance, i.e. outputs twice the image's channels; "
            "set UNet's outputs: 2, or use FixedLarge or FixedSmall"
        )
    nu = denoised.nu
    return nu * broadcast(large, nu) + (1 - nu) * broadcast(small, nu)
