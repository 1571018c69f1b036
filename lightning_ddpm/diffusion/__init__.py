"""The mathematics, in pure torch: no Lightning, no files, no devices named."""

from lightning_ddpm.diffusion.denoiser import Denoised, Denoiser
from lightning_ddpm.diffusion.objective import simple_loss
from lightning_ddpm.diffusion.process import (
    Gaussian,
    eps_to_x_0,
    posterior_variance,
    q_posterior,
    q_sample,
    q_transition,
    reverse_mean,
    transition_variance,
    x_0_to_eps,
)
from lightning_ddpm.diffusion.sampling import DDIM, Ancestral, FixedLarge, FixedSmall, ReverseVariance, Sampler
from lightning_ddpm.diffusion.schedule import Cosine, Linear, NoiseSchedule, Quadratic, Sigmoid
from lightning_ddpm.diffusion.spacing import Spacing, quadratic, uniform

__all__ = [
    "DDIM",
    "Ancestral",
    "Cosine",
    "Denoised",
    "Denoiser",
    "FixedLarge",
    "FixedSmall",
    "Gaussian",
    "Linear",
    "NoiseSchedule",
    "Quadratic",
    "ReverseVariance",
    "Sampler",
    "Sigmoid",
    "Spacing",
    "eps_to_x_0",
    "posterior_variance",
    "q_posterior",
    "q_sample",
    "q_transition",
    "quadratic",
    "reverse_mean",
    "simple_loss",
    "transition_variance",
    "uniform",
    "x_0_to_eps",
]
