"""Sampling by the reverse stochastic differential equation; Song et al. 2021 (arXiv:2011.13456).

dx = [-1/2 beta(t) x - beta(t) score] dt + sqrt(beta(t)) dw, run from T to 0. The integral of beta(t) over a step from t
to s is log(alpha_bar_s / alpha_bar_t), whatever the path of beta(t) between the two.
"""

from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import scale, score
from lightning_ddpm.diffusion.samplers.base import MarkovSampler, Noise
from lightning_ddpm.diffusion.samplers.spacing import Spacing, uniform_spacing
from lightning_ddpm.utils.errors import UserError


@final
class EulerMaruyama(MarkovSampler):
    """The reverse SDE in straight steps, no noise at the last; Song et al. 2021, appendix D and G.

    Spends one network evaluation a step. First order, and in need of many steps: where beta is not small it overshoots,
    as at the end of the cosine schedule. A schedule without terminal signal has no such SDE.

    Args:
        steps: how many of the T steps are visited; ``None`` for all.
        spacing: which ones, where they are not all.
    """

    def __init__(self, steps: int | None = None, spacing: Spacing = uniform_spacing) -> None:
        self.steps, self.spacing = steps, spacing

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        schedule = denoise.schedule
        if t == schedule.T and schedule.alpha_bar_T < torch.finfo(torch.float32).tiny:
            raise UserError(
                "the reverse SDE has no start where alpha_bar_T is 0, or next to it, got "
                f"{schedule.alpha_bar_T:.3g} at T={t}; sample with DDIM or Ancestral"
            )
        beta = (schedule.alpha_bar[s] / schedule.alpha_bar[t]).log()
        drift = x_t / 2 + score(schedule, denoise(x_t, t).eps, t)
        x_s = x_t + scale(beta, drift)
        return x_s + scale(beta.sqrt(), noise(x_t)) if s > 0 else x_s


@final
class PredictorCorrector(MarkovSampler):
    """After every step of another sampler, Langevin steps towards q(x_s); Song et al. 2021, Algorithms 1 and 5.

    Their step size, 2 alpha_s (r ||z|| / ||score||)^2, has norms averaged over a batch; here their ratio is what it is
    for the noise in x_s, sqrt(1 - alpha_bar_s), so that an image does not depend on its neighbours. Spends one network
    evaluation a step, and one for each correction, of which the last step has none.

    Args:
        predictor: makes the steps.
        corrections: Langevin steps after each of them.
        snr: r, the share of noise in a Langevin step (Song et al.: 0.16).
    """

    def __init__(self, predictor: MarkovSampler, corrections: int = 1, snr: float = 0.16) -> None:
        if corrections < 1 or snr <= 0:
            raise UserError(f"PredictorCorrector needs corrections >= 1 and snr > 0, got {corrections} and {snr}")
        if predictor.extra_nfe:
            raise UserError(f"{predictor} corrects its steps itself; give PredictorCorrector another predictor")
        self.predictor, self.snr = predictor, snr
        self.steps, self.spacing, self.extra_nfe = predictor.steps, predictor.spacing, corrections

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        schedule = denoise.schedule
        x = self.predictor.step(denoise, x_t, t, s, noise)
        for _ in range(self.extra_nfe if s > 0 else 0):
            size = 2 * (1 - schedule.beta[s]) * (self.snr * schedule.noise[s]) ** 2
            x = x + scale(size, score(schedule, denoise(x, s).eps, s)) + scale((2 * size).sqrt(), noise(x))
        return x
