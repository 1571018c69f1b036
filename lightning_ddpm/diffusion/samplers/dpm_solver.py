"""DPM-Solver++, second order multistep; Lu et al. 2022 (arXiv:2211.01095)."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import scale
from lightning_ddpm.diffusion.samplers.base import Noise, Sampler, check_fraction, list_steps
from lightning_ddpm.diffusion.samplers.spacing import Spacing, uniform_spacing


@final
class DPMSolverPP(Sampler):
    """DPM-Solver++(2M), and with eta > 0 its SDE variant; Lu et al. 2022 (arXiv:2211.01095), Algorithm 2.

    x^_0 goes on along a line in lambda = log(signal / noise); all else is solved exactly. Spends one network evaluation
    a step. Second order for eta = 0; the first step and the one to x_0 are DDIM's.

    Args:
        steps: how many of the T steps are visited; ``None`` for all.
        eta: 0 for the ODE, 1 for the SDE: how much of x_t's noise is drawn anew (k-diffusion's ``eta``).
        spacing: which steps.
    """

    def __init__(self, steps: int | None = 20, eta: float = 0.0, spacing: Spacing = uniform_spacing) -> None:
        self.steps, self.eta, self.spacing = steps, check_fraction("eta", eta), spacing

    def nfe(self, T: int) -> int:
        return len(list_steps(T, self.spacing, self.steps))

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule, x = denoise.schedule, x_T
        before: tuple[Tensor, Tensor] | None = None
        for t, s in list_steps(schedule.T, self.spacing, self.steps):
            x_0 = denoise(x, t).x_0
            # e^-h, h being the step in lambda: infinite from a t without signal, and to s = 0.
            shrinkage = schedule.signal[t] * schedule.noise[s] / (schedule.noise[t] * schedule.signal[s])
            h = -shrinkage.log()
            # x^_0 as it will be half-way, if it goes on as it went.
            midway = x_0
            if before is not None and s > 0:
                x_0_before, h_before = before
                midway = x_0 + scale(h / (2 * h_before), x_0 - x_0_before)
            of_x = schedule.noise[s] / schedule.noise[t] * shrinkage**self.eta
            x = scale(of_x, x) + scale(schedule.signal[s] * (1 - shrinkage ** (1 + self.eta)), midway)
            if s > 0 and self.eta > 0:
                x = x + scale(schedule.noise[s] * (1 - shrinkage ** (2 * self.eta)).sqrt(), noise(x))
            before = x_0, h
            yield x
