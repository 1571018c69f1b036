"""Weighting of noise levels by a learned uncertainty; Karras et al. 2024 (arXiv:2312.02696), appendix B.2, eq. 21."""

import math
from copy import copy
from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.gaussian_path import GaussianPath
from lightning_ddpm.diffusion.losses import VLB, Hybrid, Objective, Simple
from lightning_ddpm.diffusion.mean_flow import MeanFlow
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom

FINITE = 20.0
"""Largest absolute value of ln sigma: a path that ends without signal has an infinite one."""


@final
class UncertaintyWeighted(Objective, nn.Module):
    """losses / exp(u(sigma)) + u(sigma), with u trained beside the network: every noise level gets an equal share.

    The minimum over u is exp(u(sigma)) = E[losses | sigma], at which the weighted loss of each noise level is 1, so
    that none dominates the gradient, however large its loss is. What the network predicts at its optimum is the same.
    u is a linear function of Fourier features of ln(sigma) / 4; it starts at 0, is in checkpoints, and takes no part in
    sampling. The losses that are logged have u in them and may be negative: they do not compare with another
    objective's.

    Args:
        objective: the losses to weight; ``null`` for ``Simple``, which with the parameterization EDM is theirs.
        features: number of Fourier features.

    Raises:
        UserError: the objective has weights of its own, as variational bounds and MeanFlow have, or there is no
            feature.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, objective: Objective | None = None, features: int = 128) -> None:
        super().__init__()
        self.objective = objective or Simple()
        self.takes_mask = self.objective.takes_mask
        is_adaptive = isinstance(self.objective, MeanFlow) and self.objective.power > 0
        if is_adaptive or isinstance(self.objective, VLB | Hybrid | UncertaintyWeighted):
            raise UserError(
                f"UncertaintyWeighted weights a squared error, and {type(self.objective).__name__} has weights of its "
                "own; use Simple or SimpleWeighted"
            )
        if features < 1:
            raise UserError(f"UncertaintyWeighted needs at least one feature, got {features}; Karras et al. use 128")
        share = (torch.arange(features, dtype=torch.float64) + 0.5) / features
        # theirs are samples of N(0, 1) and of a uniform distribution; these are their quantiles, in two orders
        frequency = 2 * math.pi * torch.special.ndtri(share)
        phase = 2 * math.pi * (torch.arange(features, dtype=torch.float64) * ((5**0.5 - 1) / 2)).frac()
        self.register_buffer("frequency", frequency.float(), persistent=False)
        self.register_buffer("phase", phase.float(), persistent=False)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def check_denoiser(self, denoise: Denoiser) -> None:
        self.objective.check_denoiser(denoise)

    def with_random(self, random: PositionRandom) -> "UncertaintyWeighted":
        inner = self.objective.with_random(random)
        if inner is self.objective:
            return self
        weighted = copy(self)  # with the same weights
        weighted.objective = inner
        return weighted

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        u = self.log_uncertainty(denoise.schedule, t)
        return self.objective.losses(denoise, x_0, t, eps) * (-u).exp() + u

    def log_uncertainty(self, schedule: GaussianPath, t: Tensor) -> Tensor:
        """Return u at times t (b,), in float32."""
        log_sigma = (schedule.noise_at(t) / schedule.signal_at(t)).log().clamp(-FINITE, FINITE)
        with torch.autocast(t.device.type, enabled=False):
            angle = log_sigma.float()[:, None] / 4 * self.frequency.float() + self.phase.float()
            features = math.sqrt(2 / len(self.frequency)) * angle.cos()
            return self.linear(features)[:, 0]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"UncertaintyWeighted(objective={self.objective}, features={len(self.frequency)})"
