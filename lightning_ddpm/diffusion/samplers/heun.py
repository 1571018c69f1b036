"""Heun's method on the probability-flow ODE; Karras et al. 2022 (arXiv:2206.00364).

Cost: two network evaluations (NFE) per step and one for the last, 2 * steps - 1. Second order, deterministic given x_T.
"""

from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.process import q_sample, x_0_to_eps
from lightning_ddpm.diffusion.samplers.base import Denoiser, MarkovSampler, Noise, Spacing, uniform_spacing


@final
class Heun(MarkovSampler):
    """Heun's method: a DDIM step to x_s, then the same step with the mean of x^_0 at x_t and at x_s.

    Karras et al. 2022, Algorithm 1, average the slope dx/dsigma (the score) at both ends; here x^_0 is averaged,
    which stays bounded where signal or noise vanishes, and the rest of the ODE is solved exactly, as in DPM-Solver++.

    Args:
        steps: number of the T timesteps to visit; ``None`` for all.
        spacing: which timesteps, if not all.
    """

    extra_nfe = 1

    def __init__(self, steps: int | None = 20, spacing: Spacing = uniform_spacing) -> None:
        self.steps, self.spacing = steps, spacing

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """Return the DDIM step from x_t with (x^_0(x_t, t) + x^_0(x_s, s)) / 2, or x^_0(x_t, t) for s = 0."""
        schedule = denoise.schedule
        x_0, eps = denoise(x_t, t)
        if s == 0:
            return x_0
        mean = (x_0 + denoise(q_sample(schedule, x_0, s, eps), s).x_0) / 2
        return q_sample(schedule, mean, s, x_0_to_eps(schedule, x_t, mean, t))
