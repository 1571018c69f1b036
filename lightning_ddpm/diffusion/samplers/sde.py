"""Sampling with the reverse stochastic differential equation (SDE); Song et al. 2021 (arXiv:2011.13456).

The SDE dx = [-1/2 beta(t) x - beta(t) score] dt + sqrt(beta(t)) dw runs from T to 0. The integral of beta(t) over a
step from t to s is log(alpha_bar_s / alpha_bar_t), whatever beta(t) does between the two.

Cost: Euler-Maruyama needs one network evaluation (NFE) per step and is of first order; each Langevin correction needs
one more.
"""

from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.gaussian_path import GaussianPath
from lightning_ddpm.diffusion.process import scale, score
from lightning_ddpm.diffusion.samplers.base import Denoiser, MarkovSampler, Noise, Spacing, uniform_spacing
from lightning_ddpm.utils.errors import UserError


@final
class EulerMaruyama(MarkovSampler):
    """The Euler-Maruyama method on the reverse SDE, without noise at the last step; Song et al. 2021, appendix D and G.

    It needs many steps: it overshoots where beta is not small, as at the end of the cosine schedule. The SDE does not
    exist for a schedule without signal at T.

    Args:
        steps: number of the T timesteps to visit; ``None`` for all.
        spacing: which timesteps, if not all.
    """

    def __init__(self, steps: int | None = None, spacing: Spacing = uniform_spacing) -> None:
        self.steps, self.spacing = steps, spacing

    def check_path(self, path: GaussianPath) -> None:
        self.nfe(path.T)
        if path.ends_in_noise:
            raise UserError(
                "the reverse SDE cannot start where alpha_bar_T is 0 or nearly 0, got "
                f"{path.alpha_bar_T:.3g} at T={path.T}; sample with DDIM or Ancestral"
            )

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """Return x_s = x_t + beta (x_t / 2 + score) + sqrt(beta) z, where beta is its integral over the step."""
        schedule = denoise.schedule
        if t == schedule.T:
            self.check_path(schedule)
        beta = (schedule.alpha_bar_at(s) / schedule.alpha_bar_at(t)).log()
        drift = x_t / 2 + score(schedule, denoise(x_t, t).eps, t)
        x_s = x_t + scale(beta, drift)
        return x_s + scale(beta.sqrt(), noise(x_t)) if s > 0 else x_s


@final
class PredictorCorrector(MarkovSampler):
    """Predictor-corrector: Langevin steps towards q(x_s) after every step of another sampler.

    Song et al. 2021, Algorithms 1 and 5. In their step size, 2 alpha_s (r ||z|| / ||score||)^2, the norms are averaged
    over a batch; here their ratio is sqrt(1 - alpha_bar_s), its value for the noise in x_s, so that an image does not
    depend on the others of its batch. NFE: the predictor's, and one per correction; the last step has no corrections.

    Args:
        predictor: makes the steps.
        corrections: number of Langevin steps after each of them.
        snr: r, the signal-to-noise ratio of a Langevin step (Song et al.: 0.16).
    """

    def __init__(self, predictor: MarkovSampler, corrections: int = 1, snr: float = 0.16) -> None:
        if corrections < 1 or snr <= 0:
            raise UserError(f"PredictorCorrector needs corrections >= 1 and snr > 0, got {corrections} and {snr}")
        if predictor.extra_nfe:
            raise UserError(f"{predictor} already corrects its steps; give PredictorCorrector another predictor")
        self.predictor, self.snr = predictor, snr
        self.steps, self.spacing, self.extra_nfe = predictor.steps, predictor.spacing, corrections

    def check_path(self, path: GaussianPath) -> None:
        self.predictor.check_path(path)

    def check_denoiser(self, denoise: Denoiser) -> None:
        self.predictor.check_denoiser(denoise)

    def step(self, denoise: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        """Return x_s of the predictor after the Langevin steps x + size * score + sqrt(2 size) z."""
        schedule = denoise.schedule
        x = self.predictor.step(denoise, x_t, t, s, noise)
        for _ in range(self.extra_nfe if s > 0 else 0):
            size = 2 * (1 - schedule.beta_at(s)) * (self.snr * schedule.noise_at(s)) ** 2
            x = x + scale(size, score(schedule, denoise(x, s).eps, s)) + scale((2 * size).sqrt(), noise(x))
        return x
