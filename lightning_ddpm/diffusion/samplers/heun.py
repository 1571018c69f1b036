"""Heun's method on the probability-flow ODE; Karras et al. 2022 (arXiv:2206.00364)."""

from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import q_sample, x_0_to_eps
from lightning_ddpm.diffusion.samplers.base import MarkovSampler, Noise
from lightning_ddpm.diffusion.samplers.spacing import Spacing, uniform_spacing


@final
class Heun(MarkovSampler):
    """Heun's method on the probability-flow ODE: DDIM's step, then the same with the mean of x^_0 at both its ends.

    As Karras et al. 2022 (arXiv:2206.00364), Algorithm 1, but on x^_0, which stays in its range where signal or noise
    vanishes, with all else solved exactly, as in DPM-Solver++. Spends two network evaluations a step, and one on the
    last: 2 * steps - 1. Second order.

    Args:
        steps: how many of the T steps are visited; ``None`` for all.
        spacing: which ones, where they are not all.
    """

    extra_nfe = 1

    def __init__(self, steps: int | None = 20, spacing: Spacing = uniform_spacing) -> None:
        self.steps, self.spacing = steps, spacing

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        schedule = denoise.schedule
        x_0, eps = denoise(x_t, t)
        if s == 0:
            return x_0
        mean = (x_0 + denoise(q_sample(schedule, x_0, s, eps), s).x_0) / 2
        return q_sample(schedule, mean, s, x_0_to_eps(schedule, x_t, mean, t))
