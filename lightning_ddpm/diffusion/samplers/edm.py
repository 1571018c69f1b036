"""EDM's sampler: Heun's method on a grid of noise levels, with churn; Karras et al. 2022 (arXiv:2206.00364).

Cost: two network evaluations (NFE) per step and one for the last, 2 * steps - 1. Second order; stochastic with churn.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.gaussian_path import GaussianPath, choose_precision
from lightning_ddpm.diffusion.samplers.base import Noise, Sampler
from lightning_ddpm.utils.errors import UserError


@final
class EDMHeun(Sampler):
    """Heun's method on dx/dsigma = eps^, for x = x_t / signal and sigma = noise / signal; Karras et al. 2022, Alg. 2.

    On every path that ends with some signal, also on the discrete ones, where the network gets real-valued t. The noise
    levels run from that of T to that of t = 1, equally spaced in sigma^(1/rho), and to 0. Unlike in their code, churn
    does not raise the noise level above that of T, which the network has not been trained on.

    Args:
        steps: number of noise levels, at least 2.
        rho: how much shorter the steps are at low noise levels.
        churn: S_churn: new noise that is added in all steps together, which raises sigma by churn / steps in each, at
            most by sqrt(2) - 1; 0 is deterministic given x_T.
        churn_min, churn_max: S_min and S_max, the noise levels between which it is added; ``None`` for no highest one.
        churn_noise: S_noise, the standard deviation of the new noise.
    """

    def __init__(
        self,
        steps: int = 18,
        rho: float = 7.0,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float | None = None,
        churn_noise: float = 1.0,
    ) -> None:
        if steps < 2 or not 0 < rho < math.inf:
            raise UserError(f"EDMHeun needs at least 2 steps and 0 < rho < inf, got steps={steps} and rho={rho}")
        highest = math.inf if churn_max is None else churn_max
        if not (0 <= churn < math.inf and 0 <= churn_min <= highest and 0 < churn_noise < math.inf):
            raise UserError(
                "EDMHeun needs churn >= 0, 0 <= churn_min <= churn_max and churn_noise > 0, got "
                f"{churn}, {churn_min}, {churn_max} and {churn_noise}"
            )
        self.steps, self.rho = steps, rho
        self.churn, self.churn_min, self.churn_max, self.churn_noise = churn, churn_min, churn_max, churn_noise

    def nfe(self, T: int) -> int:
        return 2 * self.steps - 1

    def check_path(self, path: GaussianPath) -> None:
        if path.ends_in_noise:
            raise UserError(
                f"EDMHeun's noise level is infinite where {type(path).__name__} ends without signal "
                f"(alpha_bar_T={path.alpha_bar_T:.3g}); sample with Heun, DPMSolverPP or DDIM"
            )

    def list_sigmas(self, path: GaussianPath) -> list[float]:
        """Return the noise levels of the steps, from that of T down to 0; eq. 5."""
        self.check_path(path)
        first, last = (float(path.noise_at(t) / path.signal_at(t)) ** (1 / self.rho) for t in (path.T, 1))
        return [(first + i / (self.steps - 1) * (last - first)) ** self.rho for i in range(self.steps)] + [0.0]

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        sigmas = self.list_sigmas(denoise.schedule)
        largest = sigmas[0]
        x = x_T * math.hypot(1, largest)  # x = x_t / signal from here on
        for sigma, next_sigma in pairwise(sigmas):
            is_churned = self.churn_min <= sigma and (self.churn_max is None or sigma <= self.churn_max)
            gamma = min(self.churn / self.steps, math.sqrt(2) - 1) if is_churned else 0
            raised = min(sigma * (1 + gamma), largest)
            if raised > sigma:
                x = x + math.sqrt(raised**2 - sigma**2) * self.churn_noise * noise(x)
            x_0, slope = _denoise(denoise, x, raised)
            if next_sigma == 0:
                yield x_0
                return
            _, next_slope = _denoise(denoise, x + (next_sigma - raised) * slope, next_sigma)
            x = x + (next_sigma - raised) * (slope + next_slope) / 2
            yield x / math.hypot(1, next_sigma)


def _denoise(denoise: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return x^_0 and eps^ for x = x_0 + sigma eps."""
    path = denoise.schedule
    angle = torch.tensor(math.atan(sigma), dtype=choose_precision(x.device), device=x.device)
    x_0, eps = denoise(x / math.hypot(1, sigma), path.time_at(angle).clamp(1, path.T))
    return x_0, eps
