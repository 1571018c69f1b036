"""Ancestral sampling: the reverse chain of Ho et al. 2020 (arXiv:2006.11239), Algorithm 2."""

from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import posterior_variance, reverse_mean, scale
from lightning_ddpm.diffusion.samplers.base import MarkovSampler, Noise
from lightning_ddpm.diffusion.samplers.spacing import Spacing, uniform_spacing
from lightning_ddpm.diffusion.variance import ReverseVariance


@final
class Ancestral(MarkovSampler):
    """DDPM: draw every x_s from p(x_s | x_t), no noise at the last step; Ho et al. 2020, Algorithm 2.

    Spends one network evaluation a step.

    Args:
        variance: the variance of the reverse steps.
        steps: how many of the T steps are visited; ``None`` for all.
        spacing: which ones, where they are not all.
    """

    def __init__(self, variance: ReverseVariance, steps: int | None = None, spacing: Spacing = uniform_spacing) -> None:
        self.variance, self.steps, self.spacing = variance, steps, spacing

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        schedule, denoised = denoise.schedule, denoise(x_t, t)
        x_s = reverse_mean(schedule, denoised.x_0, denoised.eps, s, posterior_variance(schedule, s, t).sqrt())
        if s == 0:
            return x_s
        return x_s + scale(self.variance.variance(schedule, s, t, denoised).sqrt(), noise(x_t))
