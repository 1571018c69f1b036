"""Training objectives: the loss of each image, and how to write one.

Ho et al. 2020 (arXiv:2006.11239), section 3.4; Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.1. A training step
samples t and eps and calls ``objective.losses``; :class:`TimestepSampler` decides how t is sampled and weighted.
``losses`` gets everything it needs as arguments:

- ``denoise``, a :class:`Denoiser` without clipping: ``x_0_hat, eps_hat = denoise(x_t, t)`` are the predicted image and
  noise whatever the network outputs, and ``denoise.schedule`` is the noise schedule;
- ``x_0`` and ``eps``, the clean images and the noise; ``q_sample`` makes x_t from them.

To write an objective, subclass :class:`Objective` and return one loss per image, (b,) float32; for example the mean
absolute error of the noise::

    class L1(Objective):
        def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
            x_t = q_sample(denoise.schedule, x_0, t, eps)
            _, eps_hat = denoise(x_t, t)
            return (eps_hat - eps).abs().flatten(1).mean(1).float()

In a config it is ``model.objective: {class_path: your_module.L1}``.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.elbo import elbo_term
from lightning_ddpm.diffusion.formatting import format_settings
from lightning_ddpm.diffusion.process import q_sample, snr
from lightning_ddpm.diffusion.schedule import require_chain
from lightning_ddpm.diffusion.variance import LearnedRange, ReverseVariance
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom


def simple_loss(target: Tensor, output: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute L_simple of each image, the squared error of the predicted noise; Ho et al. 2020, eq. 14.

    It is the mean over pixels, not the sum, as in Ho et al.'s code, so that losses of different image sizes compare.

    Args:
        target: (b, c, h, w) the noise in x_t, or whatever else the network predicts.
        output: (b, c, h, w) the network's prediction of it.
        mask: (b, c, h, w) bool, or one for all images, the values over which the mean is taken; ``None`` for all.

    Returns:
        (b,) float32, whatever precision the network ran in; 0 for an image without values.
    """
    error = output.float() - target.float()
    if mask is None:
        return error.square().flatten(1).mean(1)
    return torch.where(mask, error, 0.0).square().flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


class Objective(ABC):
    """A training objective: one loss per image.

    Attributes:
        takes_mask: whether the loss is the mean over the values that images have, ``denoise.mask``, where others are
            missing.
    """

    takes_mask = False

    @abstractmethod
    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Compute the loss of each image, (b,) float32.

        Args:
            denoise: the network as a denoiser without clipping.
            x_0: (b, c, h, w) images in [-1, 1].
            t: (b,) timesteps in 1..T.
            eps: (b, c, h, w) standard normal noise.
        """

    def check_denoiser(self, denoise: Denoiser) -> None:
        """Raise a UserError if the objective cannot train this network on this path; called when a model is built."""
        return

    def with_random(self, random: PositionRandom) -> "Objective":
        """Return the objective of a batch whose images have these random numbers; itself if t and eps are all it needs.

        Validation asks for it, so that its loss is the same on any number of devices. In training an objective's own
        random numbers come from torch's global generators, as dropout's do.
        """
        return self

    __repr__ = format_settings


@final
class Simple(Objective):
    """L_simple: the squared error of whatever the network predicts; Ho et al. 2020, eq. 14."""

    takes_mask = True

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        output, _ = denoise.network_output(q_sample(denoise.schedule, x_0, t, eps), t)
        return simple_loss(denoise.parameterization.target(denoise.schedule, x_0, eps, t), output, denoise.mask)


class SNRWeight(ABC):
    """The weight of x^_0's squared error as a function of the SNR; divided by the SNR, it is the weight of eps^'s."""

    @abstractmethod
    def x_0_weight(self, snr: Tensor) -> Tensor:
        """Return the weight, in the shape of ``snr`` = alpha_bar_t / (1 - alpha_bar_t)."""

    __repr__ = format_settings


@final
class MinSNR(SNRWeight):
    """min(SNR, gamma), so that nearly clean images do not dominate; Hang et al. 2023 (arXiv:2303.09556)."""

    def __init__(self, gamma: float = 5.0) -> None:
        if not 0 < gamma < math.inf:
            raise UserError(f"min-SNR's gamma must be above 0 and finite, got {gamma}; Hang et al. use 5")
        self.gamma = gamma

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


@final
class P2(SNRWeight):
    """SNR / (k + SNR)^gamma: less weight on imperceptible detail; Choi et al. 2022 (arXiv:2204.00227), eq. 8."""

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        if not (0 < k < math.inf and 0 <= gamma < math.inf):
            raise UserError(f"P2 needs k > 0 and gamma >= 0, both finite, got {k} and {gamma}; Choi et al. use 1 and 1")
        self.k, self.gamma = k, gamma

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return snr / (self.k + snr) ** self.gamma


@final
class TruncatedSNR(SNRWeight):
    """max(SNR, 1): the larger of the errors of x^_0 and eps^; Salimans & Ho 2022 (arXiv:2202.00512), section 4."""

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return snr.clamp(min=1)


@final
class FlowWeight(SNRWeight):
    """(1 + sqrt(SNR))^2, the error of the flow's velocity eps - x_0; Li & He 2025 (arXiv:2511.13720), section 4.

    On ``RectifiedFlow`` it is 1 / (t/T)^2.

    Args:
        limit: the share t/T below which it stays as it is there, lest nearly clean images dominate.
    """

    def __init__(self, limit: float = 0.05) -> None:
        if not 0 < limit <= 1:
            raise UserError(f"FlowWeight's limit must lie in (0, 1], got {limit}; Li & He use 0.05")
        self.limit = limit

    def x_0_weight(self, snr: Tensor) -> Tensor:
        return (1 + snr.sqrt()).clamp(max=1 / self.limit) ** 2


@final
class SimpleWeighted(Objective):
    """The squared error of x^_0 times a function of the SNR: the same value for every parameterization.

    Where no signal is left (zero terminal SNR, t = T), a weight that vanishes with the SNR would leave the step that
    sampling starts from untrained. There the squared error of the network's output has the weight 1, as in the code of
    Hang et al. 2023; P2's has no such case.

    Args:
        weight: the function of the SNR.
    """

    takes_mask = True

    def __init__(self, weight: SNRWeight) -> None:
        self.weight = weight

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self.output_weight(denoise, t) * Simple().losses(denoise, x_0, t, eps)

    def output_weight(self, denoise: Denoiser, t: Tensor) -> Tensor:
        """Return the weight of the squared error of the network's output, (b,) float32."""
        ratio = snr(denoise.schedule, t)
        weight = self.weight.x_0_weight(ratio) / denoise.parameterization.x_0_factor(denoise.schedule, t)
        vanishes = (ratio < torch.finfo(torch.float32).tiny) & (weight.float() == 0)
        return torch.where(vanishes, 1.0, weight.float())


@final
class VLB(Objective):
    """L_vlb = T L_{t-1} in bits/dim; Ho et al. 2020, eq. 5, with all of its weights.

    With uniform t it is an unbiased estimate of the variational bound on -log p, without its constant L_T.

    Args:
        variance: Sigma of the reverse steps; a learned one is trained.
    """

    def __init__(self, variance: ReverseVariance) -> None:
        self.variance = variance

    def check_denoiser(self, denoise: Denoiser) -> None:
        require_chain(denoise.schedule, "the variational bound (VLB)")

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        schedule = require_chain(denoise.schedule, "the variational bound (VLB)")
        denoised = denoise(q_sample(schedule, x_0, t, eps), t)
        return schedule.T * elbo_term(schedule, self.variance, x_0, t, denoised, denoise.levels).float()


@final
class Hybrid(Objective):
    """L_simple + weight * L_vlb, where L_vlb trains only the learned variance; Nichol & Dhariwal 2021, eq. 16.

    L_vlb is :class:`VLB`'s T L_{t-1}, in bits/dim as in their code: with weight 0.001, each term counts T/1000 times.
    The mean is detached in L_vlb, so that it is trained by L_simple alone.

    Args:
        weight: of L_vlb.
    """

    def __init__(self, weight: float = 0.001) -> None:
        self.weight = weight

    def check_denoiser(self, denoise: Denoiser) -> None:
        require_chain(denoise.schedule, "the variational bound (Hybrid)")

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        schedule = require_chain(denoise.schedule, "the variational bound (Hybrid)")
        x_t = q_sample(schedule, x_0, t, eps)
        output, nu = denoise.network_output(x_t, t)
        simple = simple_loss(denoise.parameterization.target(schedule, x_0, eps, t), output)
        mean_detached = denoise.interpret(x_t, output.detach(), nu, t)
        vlb = schedule.T * elbo_term(schedule, LearnedRange(), x_0, t, mean_detached, denoise.levels)
        return simple + self.weight * vlb.float()
