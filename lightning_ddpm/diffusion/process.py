"""The forward process, its posterior, and the mean of the reverse step that all samplers share.

Ho, Jain & Abbeel 2020 (arXiv:2006.11239); Song, Meng & Ermon 2021 (arXiv:2010.02502). Every ``t`` is a timestep in 0..T
or a (b,) tensor of them, every image is a tensor (b, c, h, w), and s < t throughout. Coefficients are computed in the
schedule's precision and are cast to the image's precision where they multiply it. The functions that convert between
x_0, eps, v, mu and the score also accept real-valued t, for solvers that stop between timesteps.

Images x_t are in the variance-preserving form of their path, in which all Gaussian paths obey the same formulas;
:func:`to_path_scale` returns alpha(t) x_0 + sigma(t) eps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.diffusion.gaussian_path import GaussianPath, Timestep

Noise = Callable[[Tensor], Tensor]
"""x -> standard normal noise like x: ``torch.randn_like``, or noise that is seeded for each image."""


class Gaussian(NamedTuple):
    """N(mean, variance I): ``mean`` has the image's shape, ``variance`` broadcasts to it."""

    mean: Tensor
    variance: Tensor


def q_sample(schedule: GaussianPath, x_0: Tensor, t: Timestep, eps: Tensor) -> Tensor:
    """Sample x_t ~ q(x_t | x_0) from standard normal ``eps``; Ho et al. 2020, eq. 4."""
    return scale(schedule.signal_at(t), x_0) + scale(schedule.noise_at(t), eps)


def to_path_scale(schedule: GaussianPath, x_t: Tensor, t: Timestep) -> Tensor:
    """Return alpha(t) x_0 + sigma(t) eps for the variance-preserving ``x_t``; the same tensor if the path is that."""
    factor = schedule.scale_at(t)
    return x_t if factor is None else scale(factor, x_t)


def q_transition(schedule: GaussianPath, x_s: Tensor, s: Timestep, t: Timestep) -> Gaussian:
    """Return q(x_t | x_s): Ho et al. 2020, eq. 2 for s = t - 1, and their eq. 4 for s = 0."""
    mean = scale((schedule.alpha_bar_at(t) / schedule.alpha_bar_at(s)).sqrt(), x_s)
    return Gaussian(mean, broadcast(transition_variance(schedule, s, t), x_s))


def q_posterior(schedule: GaussianPath, x_t: Tensor, x_0: Tensor, s: Timestep, t: Timestep) -> Gaussian:
    """Return q(x_s | x_t, x_0): Ho et al. 2020, eq. 6-7 for s = t - 1."""
    x_0_factor, x_t_factor = posterior_coefficients(schedule, s, t)
    return Gaussian(scale(x_0_factor, x_0) + scale(x_t_factor, x_t), broadcast(posterior_variance(schedule, s, t), x_t))


def posterior_coefficients(schedule: GaussianPath, s: Timestep, t: Timestep) -> tuple[Tensor, Tensor]:
    """Return the factors of x_0 and x_t in the mean of q(x_s | x_t, x_0); for s = t - 1, Ho et al. 2020, eq. 7."""
    alpha_bar_s, alpha_bar_t = schedule.alpha_bar_at(s), schedule.alpha_bar_at(t)
    x_0_factor = alpha_bar_s.sqrt() * transition_variance(schedule, s, t) / (1 - alpha_bar_t)
    x_t_factor = (alpha_bar_t / alpha_bar_s).sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    return x_0_factor, x_t_factor


def transition_variance(schedule: GaussianPath, s: Timestep, t: Timestep) -> Tensor:
    """Return the variance of q(x_t | x_s), beta_t for s = t - 1; same shape as ``t``, in the schedule's precision."""
    return 1 - schedule.alpha_bar_at(t) / schedule.alpha_bar_at(s)


def posterior_variance(schedule: GaussianPath, s: Timestep, t: Timestep) -> Tensor:
    """Return the variance of q(x_s | x_t, x_0): beta~_t for s = t - 1, and 0 for s = 0; same shape as ``t``."""
    return transition_variance(schedule, s, t) * (1 - schedule.alpha_bar_at(s)) / (1 - schedule.alpha_bar_at(t))


def snr(schedule: GaussianPath, t: Timestep) -> Tensor:
    """Return the SNR alpha_bar_t / (1 - alpha_bar_t); Kingma et al. 2021 (arXiv:2107.00630), eq. 1."""
    return schedule.alpha_bar_at(t) / (1 - schedule.alpha_bar_at(t))


def eps_to_x_0(schedule: GaussianPath, x_t: Tensor, eps: Tensor, t: Timestep) -> Tensor:
    """Return the x_0 that the noise ``eps`` turns into ``x_t``; Ho et al. 2020, eq. 15."""
    return (x_t - scale(schedule.noise_at(t), eps)) / broadcast(schedule.signal_at(t), x_t)


def x_0_to_eps(schedule: GaussianPath, x_t: Tensor, x_0: Tensor, t: Timestep) -> Tensor:
    """Return the noise that turns ``x_0`` into ``x_t``: :func:`eps_to_x_0` solved for eps."""
    return (x_t - scale(schedule.signal_at(t), x_0)) / broadcast(schedule.noise_at(t), x_t)


def compute_velocity(schedule: GaussianPath, x_0: Tensor, eps: Tensor, t: Timestep) -> Tensor:
    """Compute v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0; Salimans & Ho 2022 (arXiv:2202.00512), section 4.

    v is dx/dphi at the angle phi = atan(noise / signal) on the curve cos(phi) x_0 + sin(phi) eps (their appendix D).
    """
    return scale(schedule.signal_at(t), eps) - scale(schedule.noise_at(t), x_0)


def score(schedule: GaussianPath, eps: Tensor, t: Timestep) -> Tensor:
    """Return grad log q(x_t | x_0) = -eps / sqrt(1 - alpha_bar_t); with E[eps | x_t] for eps, it is grad log q(x_t).

    Vincent 2011, denoising score matching; Song et al. 2021 (arXiv:2011.13456), section 3.3.
    """
    return -eps / broadcast(schedule.noise_at(t), eps)


def reverse_mean(schedule: GaussianPath, x_0: Tensor, eps: Tensor, s: Timestep, sigma: Tensor) -> Tensor:
    """Compute the mean of x_s from x^_0 and eps^: sqrt(alpha_bar_s) x^_0 + sqrt(1 - alpha_bar_s - sigma^2) eps^.

    Song et al. 2021, eq. 12. With sigma^2 = beta~_t it is the mean of q(x_s | x_t, x^_0), so one formula serves DDPM
    (sigma^2 = beta~_t) and DDIM (sigma = 0), for steps of any length.

    Args:
        schedule: the noise schedule.
        x_0: (b, c, h, w) predicted images.
        eps: (b, c, h, w) predicted noise; x_0 and eps together give x_t.
        s: the earlier timestep, 0 <= s < t.
        sigma: standard deviation of the noise that the caller adds to this mean.
    """
    direction = (1 - schedule.alpha_bar_at(s) - sigma**2).clamp(min=0).sqrt()
    return scale(schedule.signal_at(s), x_0) + scale(direction, eps)


def expand_timesteps(t: Timestep | float, image: Tensor) -> Tensor:
    """Return the timestep of each image, (b,); a number is filled in on the device, without a synchronising copy."""
    if isinstance(t, Tensor):
        return t.expand(len(image))
    dtype = None if isinstance(t, int) else image.dtype
    return torch.full((len(image),), t, device=image.device, dtype=dtype)


def broadcast(coefficient: Tensor, image: Tensor) -> Tensor:
    """Cast () or (b,) coefficients to the image's precision, in the shape () or (b, 1, ..., 1).

    One of shape () may stand on the host beside images on a GPU.
    """
    coefficient = coefficient.to(image.dtype)
    if not coefficient.ndim:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (image.ndim - coefficient.ndim))


def scale(coefficient: Tensor, image: Tensor) -> Tensor:
    """Multiply images by () or (b,) coefficients."""
    return broadcast(coefficient, image) * image
