"""What every sampler is, and how to write one: a sampler turns noise x_T into images x_0.

A sampler gets three things and depends on neither the network nor the device:

- ``denoise``, a :class:`Denoiser`: ``x_0, eps = denoise(x_t, t)`` are the predicted image and noise (b, c, h, w), with
  x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, whatever the network outputs; guidance and clipping are
  included. Each call is one network evaluation (NFE). ``denoise.schedule`` is the noise schedule.
- ``x_T``, standard normal noise (b, c, h, w).
- ``noise``: ``noise(x)`` returns fresh standard normal noise in the shape of x. All random numbers of a sampler come
  from it, so that an image depends on its seed and index, and not on its batch or on global random state.

If a step needs nothing but x_t, subclass :class:`MarkovSampler` and write ``step``; otherwise subclass :class:`Sampler`
and write ``trajectory`` and ``nfe``. For example, deterministic DDIM::

    class MySampler(MarkovSampler):
        def __init__(self, steps: int | None = 50) -> None:
            self.steps, self.spacing = steps, uniform_spacing

        def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
            x_0, eps = denoise(x_t, t)
            return q_sample(denoise.schedule, x_0, s, eps)

In a config it is ``model.sampler: {class_path: your_module.MySampler, init_args: {steps: 20}}``.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser as Denoiser
from lightning_ddpm.diffusion.formatting import format_settings
from lightning_ddpm.diffusion.gaussian_path import GaussianPath
from lightning_ddpm.diffusion.process import Noise as Noise
from lightning_ddpm.diffusion.samplers.spacing import Spacing as Spacing
from lightning_ddpm.diffusion.samplers.spacing import uniform_spacing as uniform_spacing
from lightning_ddpm.utils.contracts import describe_class
from lightning_ddpm.utils.errors import UserError


class Sampler(ABC):
    """Turns x_T into x_0."""

    @abstractmethod
    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        """Yield x_t (b, c, h, w) after every step; the last one is x_0.

        Args:
            denoise: predicts x_0 and eps.
            x_T: (b, c, h, w) standard normal noise.
            noise: the source of the noise that the steps add.
        """

    @abstractmethod
    def nfe(self, T: int) -> int | None:
        """Return the network evaluations (NFE) per image with T timesteps; ``None`` if they depend on the image.

        Raises:
            UserError: the sampler cannot be used with such a schedule.
        """

    def check_path(self, path: GaussianPath) -> None:
        """Raise a UserError if the sampler cannot be used on the path, or has more steps than it; before any work."""
        self.nfe(path.T)

    def check_denoiser(self, denoise: Denoiser) -> None:
        """Raise a UserError if the sampler cannot use the denoiser, with its path and its guidance; before any work."""
        self.check_path(denoise.schedule)

    @final
    def sample(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Tensor:
        """Return x_0 (b, c, h, w), the end of the :meth:`trajectory`, which takes the same arguments."""
        return deque(self.trajectory(denoise, x_T, noise), maxlen=1).pop()

    __repr__ = format_settings


class MarkovSampler(Sampler):
    """A sampler whose steps depend on nothing but x_t; its trajectory repeats ``step`` over the visited timesteps.

    Attributes:
        steps: number of the T timesteps to visit; ``None`` for all of them.
        spacing: which timesteps, if not all.
        extra_nfe: network evaluations of a step at x_s, s > 0, besides the one at x_t.
    """

    steps: int | None
    spacing: Spacing
    extra_nfe: int = 0

    @abstractmethod
    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """Return x_s (b, c, h, w) for x_t, where 0 <= s < t; s = 0 is the last step."""

    @final
    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        x = x_T
        for t, s in self._list_steps(denoise.schedule.T):
            x = self.step(denoise, x, t, s, noise)
            yield x

    @final
    def nfe(self, T: int) -> int:
        steps = len(self._list_steps(T))
        return steps + self.extra_nfe * (steps - 1)

    def _list_steps(self, T: int) -> list[tuple[int, int]]:
        for name in ("steps", "spacing"):
            if not hasattr(self, name):
                raise UserError(
                    f"{describe_class(type(self))} has no attribute {name!r}, which every MarkovSampler needs; set "
                    f"self.{name} in its __init__, e.g. from an argument"
                )
        return list_steps(T, self.spacing, self.steps)


def list_steps(T: int, spacing: Spacing, steps: int | None) -> list[tuple[int, int]]:
    """Return (t, s) of every step of the chain, from T down to 0.

    Raises:
        UserError: ``steps`` is not in 1..T, or the spacing does not return ``steps`` increasing timesteps up to T.
    """
    times = list(range(1, T + 1)) if steps is None else spacing(T, steps)
    increasing = all(earlier < later for earlier, later in pairwise([0, *times]))
    if not (increasing and times and times[-1] == T and len(times) == (steps or T)):
        raise UserError(
            f"a spacing of {steps} steps must return {steps} increasing timesteps, from 1 or later to T={T}, where "
            f"sampling starts; got {times} from {getattr(spacing, '__name__', spacing)}"
        )
    return list(pairwise([*reversed(times), 0]))


def check_fraction(name: str, value: float) -> float:
    """Return ``value``, a share of DDPM's noise, after checking that it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], got {value}; 0 adds no noise, 1 as much as DDPM does")
    return value
