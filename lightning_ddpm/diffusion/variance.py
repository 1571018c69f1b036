"""Sigma_t = sigma_t^2 I of the reverse step p(x_s | x_t): fixed, or learned.

Ho et al. 2020 (arXiv:2006.11239), section 3.2; Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.1.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.parameterization import Denoised
from lightning_ddpm.diffusion.process import posterior_variance, transition_variance
from lightning_ddpm.diffusion.schedule import NoiseSchedule, Timestep
from lightning_ddpm.utils.errors import UserError


class ReverseVariance(ABC):
    """Sigma_t = sigma_t^2 I of p(x_s | x_t)."""

    @abstractmethod
    def variance(self, schedule: NoiseSchedule, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        """sigma^2 of the step from t to s: a scalar in the schedule's precision, or (b, c, h, w) where it is learned.

        Args:
            schedule: the noise schedule.
            s: the earlier step, 0 <= s < t.
            t: the step.
            denoised: what the network says about x_t.
        """

    @abstractmethod
    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        """log sigma_t^2 of the step from t to t - 1 in the likelihood; finite at t = 1, where it is the decoder's.

        Args:
            schedule: the noise schedule, T >= 2.
            t: a step or (b,) steps in 1..T.
            denoised: what the network says about x_t.

        Returns:
            Shaped as ``t``, or (b, c, h, w) where it is learned.
        """

    def __repr__(self) -> str:
        return type(self).__name__


@final
class FixedLarge(ReverseVariance):
    """beta_t: optimal for x_0 ~ N(0, I). Best with all 1000 steps (FID 3.17), ruinous with 100 or fewer.

    Ho et al. 2020, section 3.2. Its decoder has beta~_2, as in their released code: beta_1 is far too wide for one.
    """

    def variance(self, schedule: NoiseSchedule, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        return transition_variance(schedule, s, t)

    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        t = torch.as_tensor(t, device=schedule.beta.device)
        return torch.where(t == 1, posterior_log_variance(schedule, t), schedule.beta[t].log())


@final
class FixedSmall(ReverseVariance):
    """beta~_t: optimal for x_0 known. The better of the two when steps are few. Ho et al. 2020, section 3.2."""

    def variance(self, schedule: NoiseSchedule, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        return posterior_variance(schedule, s, t)

    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        return posterior_log_variance(schedule, t)


@final
class LearnedRange(ReverseVariance):
    """exp(nu log beta_t + (1 - nu) log beta~_t), nu by the network at every pixel; Nichol & Dhariwal 2021, eq. 15.

    The network answers with twice the images' channels, and an objective with L_vlb in it trains them.
    """

    def variance(self, schedule: NoiseSchedule, s: int, t: int, denoised: Denoised | None = None) -> Tensor:
        large, small = transition_variance(schedule, s, t), posterior_variance(schedule, s, t)
        return _interpolate_log_variance(small.log(), large.log(), denoised).exp()

    def log_variance(self, schedule: NoiseSchedule, t: Timestep, denoised: Denoised | None = None) -> Tensor:
        return _interpolate_log_variance(posterior_log_variance(schedule, t), schedule.beta[t].log(), denoised)


def posterior_log_variance(schedule: NoiseSchedule, t: Timestep) -> Tensor:
    """log beta~_t; at t = 1, where beta~ is 0, that of t = 2, as Ho et al.'s code has it. Shaped as ``t``."""
    if schedule.T < 2:
        raise UserError("the likelihood's decoder takes its variance from t = 2; give the schedule at least 2 steps")
    t = torch.as_tensor(t, device=schedule.beta.device).clamp(min=2)
    return posterior_variance(schedule, t - 1, t).log()


def _interpolate_log_variance(small: Tensor, large: Tensor, denoised: Denoised | None) -> Tensor:
    """nu large + (1 - nu) small."""
    if denoised is None or denoised.nu is None:
        raise UserError(
            "LearnedRange needs a network that says the variance in as many channels again as the image has; "
            "give UNet outputs: 2, or take FixedLarge or FixedSmall"
        )
    nu = denoised.nu
    small, large = (each.to(nu.dtype).reshape(each.shape + (1,) * (nu.ndim - each.ndim)) for each in (small, large))
    return nu * large + (1 - nu) * small
