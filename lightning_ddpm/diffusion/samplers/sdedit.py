"""SDEdit: variations of an image; Meng et al. 2022 (arXiv:2108.01073).

It wraps another sampler and needs no training of its own. Cost: the network evaluations (NFE) of the steps that it
makes, i.e. the share ``strength`` of that sampler's.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.process import q_sample
from lightning_ddpm.diffusion.samplers.base import Denoiser, MarkovSampler, Noise, Sampler, list_steps
from lightning_ddpm.utils.errors import UserError


@final
class SDEdit(Sampler):
    """SDEdit: adds noise to an image up to an intermediate t, and samples from there; Meng et al. 2022.

    Args:
        sampler: makes the steps.
        image: (c, h, w) or (b, c, h, w) in [-1, 1].
        strength: share of the sampler's steps that are made, to the nearest step; 0 returns the image, 1 a new one.
    """

    def __init__(self, sampler: MarkovSampler, image: Tensor, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise UserError(f"the strength of SDEdit must lie in [0, 1], got {strength}; 0 returns the image itself")
        self.sampler, self.image, self.strength = sampler, image, strength

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        steps, x = self._list_steps(denoise.schedule.T), self.image.to(x_T).expand_as(x_T)
        if not steps:
            yield x
            return
        x = q_sample(denoise.schedule, x, steps[0][0], x_T)
        for t, s in steps:
            x = self.sampler.step(denoise, x, t, s, noise)
            yield x

    def check_denoiser(self, denoise: Denoiser) -> None:
        super().check_denoiser(denoise)
        self.sampler.check_denoiser(denoise)

    def nfe(self, T: int) -> int:
        steps = len(self._list_steps(T))
        return steps + self.sampler.extra_nfe * max(steps - 1, 0)

    def _list_steps(self, T: int) -> list[tuple[int, int]]:
        """Return (t, s) of the last steps of the sampler, a share ``strength`` of all.

        Raises:
            UserError: the share is not 0, and less than half a step.
        """
        steps = list_steps(T, self.sampler.spacing, self.sampler.steps)
        made = round(self.strength * len(steps))
        if self.strength and not made:
            raise UserError(
                f"strength {self.strength:g} of {len(steps)} steps is no step; raise it to at least "
                f"{1 / len(steps):g}, or take more steps"
            )
        return steps[len(steps) - made :]
