"""DPM-Solver++(2M): a multistep solver of the probability-flow ODE or SDE; Lu et al. 2022 (arXiv:2211.01095).

Cost: one network evaluation (NFE) per step. Second order for eta = 0.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import scale
from lightning_ddpm.diffusion.samplers.base import Noise, Sampler, Spacing, check_fraction, list_steps, uniform_spacing


@final
class DPMSolverPP(Sampler):
    """DPM-Solver++(2M), and with eta > 0 its SDE variant; Lu et al. 2022, Algorithm 2.

    x^_0 is extrapolated linearly in lambda = log(signal / noise), and the rest of the ODE is solved exactly. The first
    step and the step to x_0 are DDIM's.

    Args:
        steps: number of the T timesteps to visit; ``None`` for all.
        eta: 0 for the ODE, 1 for the SDE: the share of x_t's noise that is replaced (k-diffusion's ``eta``).
        spacing: which timesteps, if not all.
    """

    def __init__(self, steps: int | None = 20, eta: float = 0.0, spacing: Spacing = uniform_spacing) -> None:
        self.steps, self.eta, self.spacing = steps, check_fraction("eta", eta), spacing

    def nfe(self, T: int) -> int:
        return len(list_steps(T, self.spacing, self.steps))

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule, x = denoise.schedule, x_T
        previous: tuple[Tensor, Tensor] | None = None
        for t, s in list_steps(schedule.T, self.spacing, self.steps):
            x_0 = denoise(x, t).x_0
            # e^-h, where h is the step in lambda: h is infinite from a t without signal and to s = 0.
            shrinkage = schedule.signal_at(t) * schedule.noise_at(s) / (schedule.noise_at(t) * schedule.signal_at(s))
            h = -shrinkage.log()
            # x^_0 extrapolated from the last two predictions to the middle of the step.
            x_0_middle = x_0
            if previous is not None and s > 0:
                previous_x_0, previous_h = previous
                x_0_middle = x_0 + scale(h / (2 * previous_h), x_0 - previous_x_0)
            x_factor = schedule.noise_at(s) / schedule.noise_at(t) * shrinkage**self.eta
            x = scale(x_factor, x) + scale(schedule.signal_at(s) * (1 - shrinkage ** (1 + self.eta)), x_0_middle)
            if s > 0 and self.eta > 0:
                x = x + scale(schedule.noise_at(s) * (1 - shrinkage ** (2 * self.eta)).sqrt(), noise(x))
            previous = x_0, h
            yield x
