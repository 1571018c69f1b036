"""Ancestral sampling (DDPM): the reverse chain of Ho et al. 2020 (arXiv:2006.11239), Algorithm 2.

Cost: one network evaluation (NFE) per step. It is stochastic and of first order; with few steps, use FixedSmall or
LearnedRange, not FixedLarge.
"""

from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.process import posterior_variance, reverse_mean, scale
from lightning_ddpm.diffusion.samplers.base import Denoiser, MarkovSampler, Noise, Spacing, uniform_spacing
from lightning_ddpm.diffusion.variance import ReverseVariance


@final
class Ancestral(MarkovSampler):
    """DDPM: sample x_s ~ p(x_s | x_t) for t = T..1, s = t - 1, without noise at the last step; Algorithm 2.

    Args:
        variance: sigma_t^2 of the reverse steps.
        steps: number of the T timesteps to visit; ``None`` for all.
        spacing: which timesteps, if not all.
    """

    def __init__(self, variance: ReverseVariance, steps: int | None = None, spacing: Spacing = uniform_spacing) -> None:
        self.variance, self.steps, self.spacing = variance, steps, spacing

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """Return x_s = mu~(x_t, x^_0) + sigma_t z, z ~ N(0, I) if s > 0, else z = 0; Algorithm 2, lines 3-4.

        For s = t - 1, mu~ is 1 / sqrt(alpha_t) (x_t - (1 - alpha_t) / sqrt(1 - alpha_bar_t) eps^). It is written in
        x^_0 and eps^ here, as the same formula holds for any s < t and for a clipped x^_0.
        """
        schedule, denoised = denoise.schedule, denoise(x_t, t)
        mean = reverse_mean(schedule, denoised.x_0, denoised.eps, s, posterior_variance(schedule, s, t).sqrt())
        if s == 0:
            return mean
        sigma = self.variance.variance(schedule, s, t, denoised).sqrt()
        return mean + scale(sigma, noise(x_t))
