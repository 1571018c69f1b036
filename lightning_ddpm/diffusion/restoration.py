"""Sampling from images that are partly known: inpainting, variations, and what lies between two images.

Each is a sampler around a sampler, or around its steps: the network was trained for none of it, and learns of none.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import q_sample, q_transition
from lightning_ddpm.diffusion.sampling import DDIM, MarkovSampler, Noise, Sampler, chain, invert
from lightning_ddpm.errors import UserError


@final
class Inpainting(Sampler):
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865): known pixels are put back after every step, and steps repeated.

    After each step of another sampler the known pixels are replaced by a draw of q(x_s | x_0), as in Song et al. 2021
    (arXiv:2011.13456), appendix I.2. What is drawn beside them knows them only as far as the network saw them in x_t,
    so that every ``jump`` steps it goes back by q(x_t | x_s) and makes those steps again, ``passes`` times in all: the
    more, the nearer it comes to the true conditional distribution. The known pixels of x_0 are exact. Spends ``passes``
    times the network evaluations of the sampler inside.

    Args:
        sampler: makes the steps.
        known: (c, h, w) or (b, c, h, w) images in [-1, 1]; unknown pixels may hold anything finite.
        mask: the same shape, or one that broadcasts to it; 1 where the pixel is known, 0 where it is not.
        passes: how often each step is made; 1 only replaces. RePaint: 10.
        jump: steps made at a time. RePaint: 10.
    """

    def __init__(self, sampler: MarkovSampler, known: Tensor, mask: Tensor, passes: int = 10, jump: int = 10) -> None:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise UserError("a mask is 1 where a pixel is known and 0 where it is not; got other values in it")
        if any(one not in (1, other) for one, other in zip(mask.shape[::-1], known.shape[::-1], strict=False)):
            raise UserError(f"the mask is {_by(mask)} and the image {_by(known)}; give one of the image's size")
        if passes < 1 or jump < 1:
            raise UserError(f"inpainting makes each step at least once, got passes={passes} and jump={jump}")
        self.sampler, self.known, self.mask, self.passes, self.jump = sampler, known, mask.bool(), passes, jump

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule, x = denoise.schedule, x_T
        known, mask = self.known.to(x).expand_as(x), self.mask.to(x.device)
        steps = chain(schedule.T, self.sampler.spacing, self.sampler.steps)
        for first in range(0, len(steps), self.jump):
            made = steps[first : first + self.jump]
            (t, _), (_, s) = made[0], made[-1]
            for again in range(self.passes):
                if again:
                    back = q_transition(schedule, x, s, t)
                    x = back.mean + back.variance.sqrt() * noise(x)
                for step in made:
                    x = self.sampler.step(denoise, x, *step, noise)
                    there = q_sample(schedule, known, step[1], noise(x)) if step[1] else known
                    x = torch.where(mask, there, x)
                    yield x

    def evaluations(self, T: int) -> int:
        return self.passes * self.sampler.evaluations(T)

    def __repr__(self) -> str:
        return f"Inpainting({self.sampler}, passes={self.passes}, jump={self.jump})"


@final
class Variation(Sampler):
    """SDEdit (Meng et al. 2022, arXiv:2108.01073): noise an image part of the way, and sample from there.

    Spends the network evaluations of the sampler's steps from there on.

    Args:
        sampler: makes the steps.
        image: (c, h, w) or (b, c, h, w) in [-1, 1].
        strength: how far: the share of the sampler's steps that are made. 0 gives the image back, 1 a new one.
    """

    def __init__(self, sampler: MarkovSampler, image: Tensor, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise UserError(f"the strength of a variation lies in [0, 1], got {strength}; 0 is the image itself")
        self.sampler, self.image, self.strength = sampler, image, strength

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        steps, x = self._steps(denoise.schedule.T), self.image.to(x_T).expand_as(x_T)
        if not steps:
            yield x
            return
        x = q_sample(denoise.schedule, x, steps[0][0], x_T)
        for t, s in steps:
            x = self.sampler.step(denoise, x, t, s, noise)
            yield x

    def evaluations(self, T: int) -> int:
        steps = len(self._steps(T))
        return steps + self.sampler.looks_back * max(steps - 1, 0)

    def _steps(self, T: int) -> list[tuple[int, int]]:
        steps = chain(T, self.sampler.spacing, self.sampler.steps)
        return steps[len(steps) - round(self.strength * len(steps)) :]

    def __repr__(self) -> str:
        return f"Variation({self.sampler}, strength={self.strength:g})"


def between(denoise: Denoiser, first: Tensor, second: Tensor, shares: Tensor, sampler: DDIM) -> Tensor:
    """Images from one to another through the noise that they come from; Song et al. 2021 (arXiv:2010.02502), 5.3.

    Both are turned into noise by :func:`invert`, and what lies between on the great circle is sampled.

    Args:
        denoise: the network, read.
        first, second: (c, h, w) images in [-1, 1].
        shares: (n,) of the way, 0 for the first and 1 for the second.
        sampler: DDIM with eta = 0, which alone comes back to them.

    Returns:
        (n, c, h, w)
    """
    if sampler.eta:
        raise UserError(f"images are interpolated by DDIM with eta=0, got eta={sampler.eta}; its noise would differ")
    ends = invert(denoise, torch.stack([first, second]), sampler.steps, sampler.spacing)
    return sampler.sample(denoise, slerp(ends[0], ends[1], shares))


def slerp(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Points on the great circle from one tensor to another of the same shape, (n, ...); Shoemake 1985.

    Between two draws of standard normal noise, each is as likely as they are. Parallel ones are mixed linearly.
    """
    cosine = (first * second).sum() / (first.norm() * second.norm())
    angle = cosine.clamp(-1, 1).acos()
    shares = shares.to(first).reshape(-1, *[1] * first.ndim)
    if angle.sin() < 1e-6:
        return (1 - shares) * first + shares * second
    points: Tensor = (((1 - shares) * angle).sin() * first + (shares * angle).sin() * second) / angle.sin()
    return points


def _by(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-3:]))
