"""The variational bound (negative ELBO) on -log p(x_0), term by term, in bits per dimension.

-log p(x_0) <= L_T + sum_{t=2..T} L_{t-1} + L_0; Ho et al. 2020 (arXiv:2006.11239), eq. 5, with the discretised decoder
of their eq. 13. Bits/dim is nats / (D ln 2), where D is the number of values in an image. Images have equally
spaced intensity levels in [-1, 1]: :attr:`Denoiser.levels`, 256 for 8 bits.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.gaussian_path import Timestep
from lightning_ddpm.diffusion.parameterization import Denoised
from lightning_ddpm.diffusion.process import Noise, broadcast, expand_timesteps, posterior_coefficients, q_sample, scale
from lightning_ddpm.diffusion.schedule import NoiseSchedule, require_chain
from lightning_ddpm.diffusion.variance import ReverseVariance, posterior_log_variance
from lightning_ddpm.utils.errors import UserError


def get_half_bin(levels: int | None) -> float:
    """Return half of the distance between neighbouring levels in [-1, 1]: 1/255 for 256 levels.

    Raises:
        UserError: the data are continuous: no level has a probability.
    """
    if levels is None:
        raise UserError(
            "the data have continuous values, which have a density and no probability: the variational bound with a "
            "discretised decoder needs levels; measure the likelihood of the flow (FlowLikelihood, evaluate --metrics "
            "bpd_flow), and train by another objective"
        )
    return 1 / (levels - 1)


class ELBOTerms(NamedTuple):
    """The terms of the variational bound, in bits/dim.

    Attributes:
        prior: (b,) L_T, which does not depend on the network.
        terms: (b, T) L_{t-1} for t = 1..T; the first one is the decoder's.
    """

    prior: Tensor
    terms: Tensor

    @property
    def total(self) -> Tensor:
        """The variational bound, (b,)."""
        return self.prior + self.terms.sum(1)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Compute KL(N(mean1, e^log_variance1) || N(mean2, e^log_variance2)) of each value, in nats."""
    log_ratio = log_variance1 - log_variance2
    return 0.5 * (log_ratio.expm1() - log_ratio + (mean1 - mean2).square() * (-log_variance2).exp())


def decoder_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor, levels: int | None = 256) -> Tensor:
    """Compute log of the probability that N(mean, e^log_variance) gives each level, in nats; Ho et al. 2020, eq. 13.

    The bin of a level is +-1/(levels - 1); the first and the last bin extend to infinity. The normal CDF is exact here,
    where Ho et al.'s and guided-diffusion's code use a tanh approximation: a difference of 0.001 to 0.002 bits/dim on
    the shipped digits model. As in Ho et al.'s code, no level has a probability below 1e-12.
    """
    distance, sigma, half_bin = x_0 - mean, (log_variance / 2).exp(), get_half_bin(levels)
    end = 1 - half_bin / 4
    # Both ends of the bin are mirrored to the left tail, where the CDF is small and the difference keeps its digits.
    inside = _normal_cdf((half_bin - distance.abs()) / sigma)
    inside = inside - _normal_cdf((-half_bin - distance.abs()) / sigma)
    first = _normal_cdf((distance + half_bin) / sigma)
    last = _normal_cdf((half_bin - distance) / sigma)
    probability = torch.where(x_0 < -end, first, torch.where(x_0 > end, last, inside))
    return probability.clamp(min=1e-12).log()


def prior_kl(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """Compute L_T = KL(q(x_T | x_0) || N(0, I)) of each image, (b,) bits/dim."""
    mean = scale(schedule.signal[-1], x_0)
    log_variance = broadcast(2 * schedule.noise[-1].log(), x_0)
    return _to_bits_per_dim(gaussian_kl(mean, log_variance, torch.zeros_like(mean), torch.zeros_like(log_variance)))


def elbo_term(
    schedule: NoiseSchedule,
    variance: ReverseVariance,
    x_0: Tensor,
    t: Timestep,
    denoised: Denoised,
    levels: int | None = 256,
) -> Tensor:
    """Compute L_{t-1} of each image: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or -log p(x_0 | x_1) for t = 1.

    Ho et al. 2020, eq. 5-8. The KL includes the constant that depends on Sigma alone; it is 0 only if Sigma is beta~.

    Args:
        schedule: the noise schedule, T >= 2.
        variance: Sigma of the reverse steps.
        x_0: (b, c, h, w) images.
        t: a timestep in 1..T or (b,) of them.
        denoised: the network's prediction for the x_t of these images.
        levels: number of equally spaced values in [-1, 1] that the images have.

    Returns:
        (b,) bits/dim.
    """
    t = expand_timesteps(t, x_0)
    x_0_factor, _ = posterior_coefficients(schedule, t - 1, t)
    log_variance = broadcast(variance.log_variance(schedule, t, denoised), x_0)
    # The x_t term is the same in both means and cancels in their difference.
    means = scale(x_0_factor, x_0), scale(x_0_factor, denoised.x_0)
    kl = gaussian_kl(means[0], broadcast(posterior_log_variance(schedule, t), x_0), means[1], log_variance)
    decoder = -decoder_log_likelihood(x_0, denoised.x_0, log_variance, levels)
    return _to_bits_per_dim(torch.where(broadcast(t, x_0) == 1, decoder, kl))


def elbo(denoise: Denoiser, variance: ReverseVariance, x_0: Tensor, noise: Noise = torch.randn_like) -> ELBOTerms:
    """Estimate all terms of the variational bound, each from one sample of x_t; T network evaluations (NFE) per image.

    Args:
        denoise: the network as a denoiser, with or without clipping.
        variance: Sigma of the reverse steps.
        x_0: (b, c, h, w) images.
        noise: returns the noise in x_t, shaped as its argument.
    """
    return elbos([denoise], variance, x_0, noise)[0]


def elbos(
    denoisers: Sequence[Denoiser], variance: ReverseVariance, x_0: Tensor, noise: Noise = torch.randn_like
) -> list[ELBOTerms]:
    """Estimate :func:`elbo` for several denoisers of one network, e.g. with and without clipping, at the NFE of one.

    Args:
        denoisers: denoisers with the same network and schedule.
        variance: Sigma of the reverse steps.
        x_0: (b, c, h, w) images.
        noise: returns the noise in x_t; called once for each t = 1..T in this order.

    Returns:
        The terms for each of the denoisers.
    """
    schedule = require_chain(denoisers[0].schedule, "the variational bound")
    terms: list[list[Tensor]] = [[] for _ in denoisers]
    for t in range(1, schedule.T + 1):
        x_t = q_sample(schedule, x_0, t, noise(x_0))
        output, nu = denoisers[0].network_output(x_t, t)
        for denoise, collected in zip(denoisers, terms, strict=True):
            collected.append(
                elbo_term(schedule, variance, x_0, t, denoise.interpret(x_t, output, nu, t), denoise.levels)
            )
    prior = prior_kl(schedule, x_0)
    return [ELBOTerms(prior, torch.stack(collected, dim=1)) for collected in terms]


def _normal_cdf(z: Tensor) -> Tensor:
    """Return the normal CDF at z, with full precision in the left tail, which torch.special.ndtr rounds to 0."""
    probability: Tensor = torch.special.erfc(-math.sqrt(0.5) * z) / 2
    return probability


def _to_bits_per_dim(nats: Tensor) -> Tensor:
    """Convert (b, c, h, w) nats of each value to (b,) bits/dim."""
    return nats.flatten(1).mean(1) / math.log(2)
