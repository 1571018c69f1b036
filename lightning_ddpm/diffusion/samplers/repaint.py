"""Sampling from images that are partly known: inpainting, variations, and what lies between two images.

Each is a sampler around a sampler, or around its steps: the network was trained for none of it, and learns of none.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import q_sample, q_transition
from lightning_ddpm.diffusion.samplers.base import MarkovSampler, Noise, Sampler, list_steps
from lightning_ddpm.utils.errors import UserError


@final
class RePaint(Sampler):
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
        steps = list_steps(schedule.T, self.sampler.spacing, self.sampler.steps)
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

    def nfe(self, T: int) -> int:
        return self.passes * self.sampler.nfe(T)

    def __repr__(self) -> str:
        return f"Inpainting({self.sampler}, passes={self.passes}, jump={self.jump})"


def _by(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-3:]))
