"""What the network says about an image, in the terms that samplers need."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.diffusion.process import eps_to_x_0, x_0_to_eps
from lightning_ddpm.diffusion.schedule import NoiseSchedule

EpsNetwork = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), t (b,) in 1..T) -> eps^ (b, c, h, w)."""


class Denoised(NamedTuple):
    """A guess at what ``x_t`` is made of: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, exactly."""

    x_0: Tensor
    eps: Tensor


class Denoiser:
    """Reads a noise-predicting network: x_t, t -> (x^_0, eps^).

    Args:
        network: predicts eps from (x_t, t); anything callable, an analytic eps included.
        schedule: the noise schedule it was trained on.
        clip: half-width of the range that images live in. x^_0 is clipped to [-clip, clip] before any mean is formed,
            and eps^ derived from it again, so that the two still make x_t. ``None`` for data without bounds.
    """

    def __init__(self, network: EpsNetwork, schedule: NoiseSchedule, clip: float | None = 1.0) -> None:
        self.network, self.schedule, self.clip = network, schedule, clip

    def __call__(self, x_t: Tensor, t: int) -> Denoised:
        """Denoise a batch at one step.

        Args:
            x_t: (b, c, h, w) noisy images.
            t: the step of the whole batch, 1..T.
        """
        steps = torch.full((len(x_t),), t, device=x_t.device)
        eps = self.network(x_t, steps).to(x_t.dtype)
        x_0 = eps_to_x_0(self.schedule, x_t, eps, t)
        if self.clip is None:
            return Denoised(x_0, eps)
        x_0 = x_0.clamp(-self.clip, self.clip)
        return Denoised(x_0, x_0_to_eps(self.schedule, x_t, x_0, t))
