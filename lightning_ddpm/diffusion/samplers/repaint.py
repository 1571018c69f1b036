"""RePaint: inpainting with an unconditional model; Lugmayr et al. 2022 (arXiv:2201.09865).

It wraps another sampler and needs no training of its own. Cost: ``passes`` times that sampler's network evaluations.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.process import q_sample, q_transition
from lightning_ddpm.diffusion.samplers.base import Denoiser, MarkovSampler, Noise, Sampler, list_steps
from lightning_ddpm.utils.errors import UserError


@final
class RePaint(Sampler):
    """Replaces the known pixels after every step, and repeats blocks of steps; Lugmayr et al. 2022, Algorithm 1.

    After each step of another sampler the known pixels are replaced by a sample of q(x_s | x_0), as in Song et al. 2021
    (arXiv:2011.13456), appendix I.2. The unknown pixels depend on them only as far as the network saw them in x_t.
    Therefore each block of ``jump`` steps is made ``passes`` times, going back with q(x_t | x_s) in between: the more
    passes, the closer the result is to the true conditional distribution. The known pixels of x_0 are exact. Every
    block is repeated here; in the authors' code, the first (noisiest) one is made only once.

    Args:
        sampler: makes the steps.
        known: (c, h, w) or (b, c, h, w) images in [-1, 1]; unknown pixels may hold any finite value.
        mask: the same shape, or one that broadcasts to it; 1 where the pixel is known, 0 where it is not.
        passes: number of times each step is made; with 1, nothing is repeated. RePaint: 10.
        jump: number of steps in a block. RePaint: 10.
    """

    def __init__(self, sampler: MarkovSampler, known: Tensor, mask: Tensor, passes: int = 10, jump: int = 10) -> None:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise UserError("a mask must be 1 where a pixel is known and 0 where it is not, got other values")
        if any(one not in (1, other) for one, other in zip(mask.shape[::-1], known.shape[::-1], strict=False)):
            raise UserError(f"the mask is {_size(mask)} and the image {_size(known)}; give one of the image's size")
        if passes < 1 or jump < 1:
            raise UserError(f"RePaint needs passes >= 1 and jump >= 1, got passes={passes} and jump={jump}")
        self.sampler, self.known, self.mask, self.passes, self.jump = sampler, known, mask.bool(), passes, jump

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule, x = denoise.schedule, x_T
        known, mask = self.known.to(x).expand_as(x), self.mask.to(x.device)
        steps = list_steps(schedule.T, self.sampler.spacing, self.sampler.steps)
        for first in range(0, len(steps), self.jump):
            block = steps[first : first + self.jump]
            (block_start, _), (_, block_end) = block[0], block[-1]
            for pass_ in range(self.passes):
                if pass_ > 0:
                    renoised = q_transition(schedule, x, block_end, block_start)
                    x = renoised.mean + renoised.variance.sqrt() * noise(x)
                for t, s in block:
                    x = self.sampler.step(denoise, x, t, s, noise)
                    known_s = q_sample(schedule, known, s, noise(x)) if s else known
                    x = torch.where(mask, known_s, x)
                    yield x

    def check_denoiser(self, denoise: Denoiser) -> None:
        super().check_denoiser(denoise)
        self.sampler.check_denoiser(denoise)

    def nfe(self, T: int) -> int:
        return self.passes * self.sampler.nfe(T)


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-3:]))
