"""Sampling in one or a few steps with a network that predicts mean velocities; Geng et al. 2025 (arXiv:2505.13447).

Cost: one network evaluation (NFE) per step. Exact for an exact network, whatever the steps; deterministic given x_T.
"""

from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.mean_flow import check_mean_velocity
from lightning_ddpm.diffusion.process import q_sample
from lightning_ddpm.diffusion.samplers.base import Denoiser, MarkovSampler, Noise, Spacing
from lightning_ddpm.diffusion.samplers.spacing import trailing_spacing


@final
class MeanFlowSampler(MarkovSampler):
    """Steps x_s = x_t - (t - s)/T u(x_t, t, s) by the mean velocity u; Geng et al. 2025, eq. 12.

    For models that the objective ``MeanFlow`` has trained. They are flows too: with more than about ten NFE to spend,
    Heun and other samplers, which also take guidance, solve the ODE of the same network.

    Args:
        steps: number of the T timesteps to visit; 1, 2 or 4 are usual.
        spacing: which timesteps.
    """

    def __init__(self, steps: int = 1, spacing: Spacing = trailing_spacing) -> None:
        self.steps, self.spacing = steps, spacing

    def check_denoiser(self, denoise: Denoiser) -> None:
        self.check_path(denoise.schedule)
        check_mean_velocity(denoise, "MeanFlowSampler")

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """Return x_s on the straight line of the step; the line's end x_0 is an image, and clipped, for s = 0 only."""
        predict = denoise if s == 0 else denoise.without_clipping()
        x_0, eps = predict.over_step(s)(x_t, t)
        return x_0 if s == 0 else q_sample(denoise.schedule, x_0, s, eps)
