"""What training minimises.

Ho et al. 2020 (arXiv:2006.11239), section 3.4; Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.1. An objective
gives a loss to every image; which t it is asked for is a :class:`TimestepSampler`'s business.
"""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.elbo import elbo_term
from lightning_ddpm.diffusion.process import q_sample, snr
from lightning_ddpm.diffusion.variance import LearnedRange, ReverseVariance


def simple_loss(target: Tensor, output: Tensor) -> Tensor:
    """L_simple for each image: the squared error of the predicted noise; Ho et al. 2020 (arXiv:2006.11239), eq. 14.

    The mean over pixels, not the sum, as in Ho et al.'s code: losses of different image sizes compare.

    Args:
        target: (b, c, h, w) the noise in x_t, or what else the network predicts.
        output: (b, c, h, w) what the network says it is.

    Returns:
        (b,) float32, whatever precision the network ran in.
    """
    return (output.float() - target.float()).square().flatten(1).mean(1)


class Objective(ABC):
    """A loss for each image."""

    @abstractmethod
    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The loss of each image, (b,) float32.

        Args:
            denoise: the network, read without clipping.
            x_0: (b, c, h, w) images in [-1, 1].
            t: (b,) steps in 1..T.
            eps: (b, c, h, w) standard normal noise.
        """

    def __repr__(self) -> str:
        settings = (f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(settings)})"


@final
class Simple(Objective):
    """L_simple: the squared error of whatever the network predicts; Ho et al. 2020, eq. 14."""

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        output, _ = denoise.network_output(q_sample(denoise.schedule, x_0, t, eps), t)
        return simple_loss(denoise.parameterization.target(denoise.schedule, x_0, eps, t), output)


class SNRWeight(ABC):
    """A weight of the squared error of x^_0 at each t, by its signal-to-noise ratio; that of eps^ is it over SNR."""

    @abstractmethod
    def x_0_weight(self, snr: Tensor) -> Tensor:
        """The weight, shaped as ``snr`` = alpha_bar_t / (1 - alpha_bar_t)."""

    def __repr__(self) -> str:
        settings = (f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(settings)})"


@final
class MinSNR(SNRWeight):
    """min(SNR, gamma): keeps nearly clean images from outweighing the rest; Hang et al. 2023 (arXiv:2303.09556)."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


@final
class P2(SNRWeight):
    """SNR / (k + SNR)^gamma: less weight on imperceptible detail; Choi et al. 2022 (arXiv:2204.00227), eq. 8."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        self.k, self.gamma = k, gamma

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma


@final
class TruncatedSNR(SNRWeight):
    """max(SNR, 1): the larger of the errors of x^_0 and eps^; Salimans & Ho 2022 (arXiv:2202.00512), section 4."""

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(min=1)


@final
class SimpleWeighted(Objective):
    """The squared error of x^_0 under a weight by SNR: the same number whatever the network predicts.

    Args:
        weight: of each t.
    """

    def __init__(self, weight: SNRWeight) -> None:
        self.weight = weight

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        schedule, prediction = denoise.schedule, denoise.parameterization
        of_output = self.weight.x_0_weight(snr(schedule, t)) / prediction.x_0_factor(schedule, t)
        return of_output.float() * Simple().losses(denoise, x_0, t, eps)


@final
class VLB(Objective):
    """T L_{t-1} in bits/dim: with uniform t, an unbiased estimate of the bound on -log p less its constant L_T.

    Ho et al. 2020, eq. 5, with every weight of it.

    Args:
        variance: Sigma of the reverse steps; a learned one is trained.
    """

    def __init__(self, variance: ReverseVariance) -> None:
        self.variance = variance

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        denoised = denoise(q_sample(denoise.schedule, x_0, t, eps), t)
        return denoise.schedule.T * elbo_term(denoise.schedule, self.variance, x_0, t, denoised).float()


@final
class Hybrid(Objective):
    """L_simple + weight * L_vlb, the latter for the learned variance alone; Nichol & Dhariwal 2021, eq. 16.

    L_vlb is :class:`VLB`'s T L_{t-1}, in bits/dim as in their code: with weight 0.001, T/1000 times each term. The mean
    is detached in it, so that L_simple alone guides it.

    Args:
        weight: of L_vlb.
    """

    def __init__(self, weight: float = 0.001) -> None:
        self.weight = weight

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        schedule = denoise.schedule
        x_t = q_sample(schedule, x_0, t, eps)
        output, nu = denoise.network_output(x_t, t)
        simple = simple_loss(denoise.parameterization.target(schedule, x_0, eps, t), output)
        of_variance = denoise.interpret(x_t, output.detach(), nu, t)
        vlb = schedule.T * elbo_term(schedule, LearnedRange(), x_0, t, of_variance)
        return simple + self.weight * vlb.float()
