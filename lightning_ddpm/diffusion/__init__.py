"""The mathematics, in pure torch: no Lightning, no files, no devices named."""

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.objective import simple_loss
from lightning_ddpm.diffusion.prediction import Data, Denoised, Epsilon, PosteriorMean, Prediction, Velocity
from lightning_ddpm.diffusion.process import (
    Gaussian,
    eps_to_x_0,
    posterior_coefficients,
    posterior_variance,
    q_posterior,
    q_sample,
    q_transition,
    reverse_mean,
    score,
    snr,
    transition_variance,
    velocity,
    x_0_to_eps,
)
from lightning_ddpm.diffusion.sampling import DDIM, Ancestral, Sampler
from lightning_ddpm.diffusion.schedule import Cosine, Linear, NoiseSchedule, Quadratic, Sigmoid
from lightning_ddpm.diffusion.spacing import Spacing, quadratic, uniform
from lightning_ddpm.diffusion.variance import (
    FixedLarge,
    FixedSmall,
    LearnedRange,
    ReverseVariance,
    posterior_log_variance,
)

__all__ = [
    "DDIM",
    "Ancestral",
    "Cosine",
    "Data",
    "Denoised",
    "Denoiser",
    "Epsilon",
    "FixedLarge",
    "FixedSmall",
    "Gaussian",
    "LearnedRange",
    "Linear",
    "NoiseSchedule",
    "PosteriorMean",
    "Prediction",
    "Quadratic",
    "ReverseVariance",
    "Sampler",
    "Sigmoid",
    "Spacing",
    "Velocity",
    "eps_to_x_0",
    "posterior_coefficients",
    "posterior_log_variance",
    "posterior_variance",
    "q_posterior",
    "q_sample",
    "q_transition",
    "quadratic",
    "reverse_mean",
    "score",
    "simple_loss",
    "snr",
    "transition_variance",
    "uniform",
    "velocity",
    "x_0_to_eps",
]
