"""From noise to images: what every sampler is, and the reverse chain in its ancestral (DDPM) and implicit (DDIM) form.

Ho et al. 2020 (arXiv:2006.11239), Algorithm 2; Song et al. 2021 (arXiv:2010.02502), eq. 12. A sampler knows neither the
network nor the device: it is given a :class:`Denoiser` and a source of noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.samplers.spacing import Spacing
from lightning_ddpm.utils.errors import UserError

Noise = Callable[[Tensor], Tensor]
"""Standard normal noise shaped as its argument: ``torch.randn_like``, or one that remembers which images it is for."""


class Sampler(ABC):
    """Turns x_T into x_0."""

    @abstractmethod
    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        """Yield x_t after every step, the last being x_0.

        Args:
            denoise: the network, read.
            x_T: (b, c, h, w) standard normal noise.
            noise: where the noise of the steps comes from.
        """

    @abstractmethod
    def nfe(self, T: int) -> int | None:
        """Network evaluations spent on one image under a schedule of T steps; ``None`` where the images decide.

        Raises:
            UserError: the sampler cannot be used with such a schedule.
        """

    @final
    def sample(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Tensor:
        """x_0 (b, c, h, w) from x_T; arguments as for :meth:`trajectory`."""
        x = x_T
        for x in self.trajectory(denoise, x_T, noise):  # noqa: B007
            pass
        return x

    def __repr__(self) -> str:
        settings = (f"{name}={getattr(value, '__name__', value)}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(settings)})"


class MarkovSampler(Sampler):
    """A sampler whose every step needs nothing but x_t.

    Attributes:
        steps: how many of the T steps are visited; ``None`` for all of them.
        spacing: which ones, where they are not all.
        extra_nfe: network evaluations a step spends at x_s, s > 0, after the one at x_t.
    """

    steps: int | None
    spacing: Spacing
    extra_nfe: int = 0

    @abstractmethod
    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """x_s (b, c, h, w) from x_t, 0 <= s < t."""

    @final
    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        x = x_T
        for t, s in list_steps(denoise.schedule.T, self.spacing, self.steps):
            x = self.step(denoise, x, t, s, noise)
            yield x

    @final
    def nfe(self, T: int) -> int:
        steps = len(list_steps(T, self.spacing, self.steps))
        return steps + self.extra_nfe * (steps - 1)


def list_steps(T: int, spacing: Spacing, steps: int | None) -> list[tuple[int, int]]:
    """(t, s) of every step of the chain, from T down to 0.

    Raises:
        UserError: more steps than T, or none, or a spacing that is none.
    """
    times = list(range(1, T + 1)) if steps is None else spacing(T, steps)
    rising = all(earlier < later for earlier, later in pairwise([0, *times]))
    if not (rising and times and times[-1] == T and len(times) == (steps or T)):
        raise UserError(
            f"a spacing of {steps} steps must give as many, increasing, from 1 or later to T={T}, where "
            f"sampling starts; got {times} from {getattr(spacing, '__name__', spacing)}"
        )
    return list(pairwise([*reversed(times), 0]))


def check_fraction(name: str, value: float) -> float:
    """The value, if it lies in [0, 1]: a share of noise, from none to that of the full chain."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], got {value}; 0 adds no noise, 1 as much as DDPM does")
    return value
