"""Sampling on a condition: a class, by a classifier or without one, or pixels that are known.

Dhariwal & Nichol 2021 (arXiv:2105.05233); Ho & Salimans 2022 (arXiv:2207.12598). Guidance makes a network of networks,
and what is known is put back by a sampler around a sampler: neither the network nor the sampler inside learns of it.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser, EpsNetwork
from lightning_ddpm.diffusion.process import q_sample, scale
from lightning_ddpm.diffusion.sampling import MarkovSampler, Noise
from lightning_ddpm.errors import UserError

LogProbability = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), t (b,)) -> (b,) log p(y | x_t) of the wanted y, by a classifier of noisy images."""


def classifier_guided(denoise: Denoiser, log_probability: LogProbability, weight: float) -> EpsNetwork:
    """eps^ - w sqrt(1 - alpha_bar_t) grad log p(y | x_t); Dhariwal & Nichol 2021, Algorithm 2.

    The score of q(x_t) p(y | x_t)^w: with w = 1, of q(x_t | y).

    Args:
        denoise: the network, read without clipping, whatever it predicts.
        log_probability: of the classifier.
        weight: w; 0 leaves the network as it is.

    Returns:
        A network that predicts the noise, and the variance if ``denoise`` does.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        denoised = denoise(x_t, t)
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(x, t).sum(), x)
        eps = denoised.eps - weight * scale(denoise.schedule.noise_at(t), gradient)
        return eps if denoised.nu is None else torch.cat([eps, 2 * denoised.nu - 1], dim=1)

    return guided


def classifier_free(conditional: EpsNetwork, unconditional: EpsNetwork, weight: float) -> EpsNetwork:
    """eps^(x_t) + w [eps^(x_t, y) - eps^(x_t)]; Ho & Salimans 2022, eq. 6, whose own w is this one less 1.

    As all predictions are linear in each other given x_t, it is the same for any of them.

    Args:
        conditional: the network given y.
        unconditional: the network given nothing, or a weaker one (autoguidance; Karras et al. 2024, arXiv:2406.02507).
        weight: w; 0 is unconditional, 1 conditional, more than 1 exaggerates.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        free = unconditional(x_t, t)
        return free + weight * (conditional(x_t, t) - free)

    return guided


@final
class Inpainting(MarkovSampler):
    """Another sampler's steps, after each of which the known pixels are replaced by a draw of q(x_s | x_0).

    Song et al. 2021 (arXiv:2011.13456), appendix I.2. The known pixels of x_0 are exact; the others follow from them as
    far as the network sees them in x_t, which is less than the true conditional distribution has. Spends as many
    network evaluations as the sampler inside.

    Args:
        sampler: makes the steps.
        known: (c, h, w) or (b, c, h, w) images in [-1, 1]; unknown pixels may hold anything finite.
        mask: the same shape, or one that broadcasts to it; 1 where the pixel is known, 0 where it is not.
    """

    def __init__(self, sampler: MarkovSampler, known: Tensor, mask: Tensor) -> None:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise UserError("a mask is 1 where a pixel is known and 0 where it is not; got other values in it")
        self.sampler, self.known, self.mask = sampler, known, mask.bool()
        self.steps, self.spacing, self.looks_back = sampler.steps, sampler.spacing, sampler.looks_back

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        x_s = self.sampler.step(denoise, x_t, t, s, noise)
        known = self.known.to(x_s).expand_as(x_s)
        if s > 0:
            known = q_sample(denoise.schedule, known, s, noise(x_s))
        return torch.where(self.mask.to(x_s.device), known, x_s)

    def __repr__(self) -> str:
        return f"Inpainting({self.sampler})"
