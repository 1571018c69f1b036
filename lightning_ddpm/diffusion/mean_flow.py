"""MeanFlow: an objective for sampling in one or a few steps, without a teacher; Geng et al. 2025 (arXiv:2505.13447).

On the straight path x_t = (1 - t/T) x_0 + t/T eps the network predicts the mean velocity of the flow from t to s,

    u(x_t, t, s) = 1 / (t - s) * integral of v(x_r, r) dr from s to t,

with which a step of any length is exact: x_s = x_t - (t - s) u. Differentiated by t along the flow, that definition is
the MeanFlow identity u = v - (t - s) du/dt (their eq. 6), whose right-hand side is the target of the squared error. v
is eps - x_0 as in flow matching, and du/dt comes from forward-mode differentiation of the network. At s = t it is flow
matching itself, so that the network remains a flow with all of its samplers and its likelihood.

Times are measured in the path's T here, and velocities per unit of t/T, as those of ``FlowVelocity``.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.gaussian_path import RectifiedFlow
from lightning_ddpm.diffusion.losses import Objective, simple_loss
from lightning_ddpm.diffusion.parameterization import FlowVelocity
from lightning_ddpm.diffusion.process import q_sample, scale
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom


def check_mean_velocity(denoise: Denoiser, what: str) -> None:
    """Check that a denoiser can predict the mean velocity of a step, which ``what`` needs.

    Raises:
        UserError: its path is curved, or it predicts something else, or its network takes no intervals.
    """
    if not isinstance(denoise.schedule, RectifiedFlow):
        raise UserError(
            f"{what} needs the straight path, on which a mean velocity makes a whole step, got "
            f"{type(denoise.schedule).__name__}; use RectifiedFlow as the schedule"
        )
    if not isinstance(denoise.parameterization, FlowVelocity):
        raise UserError(
            f"{what} needs a network that predicts a velocity, got {denoise.parameterization}; use FlowVelocity as the "
            "parameterization"
        )
    if denoise.guided:
        raise UserError(
            f"{what} takes steps by a mean velocity, and guidance combines velocities at one time; sample with "
            "guidance scale 1, or guide Heun, DDIM or DPMSolverPP"
        )
    if not denoise.intervals:
        raise UserError(
            f"{what} needs a network that is given the length of the step, and this one is not; set intervals: true in "
            "UNet or DiT, and train it with the objective MeanFlow"
        )


@final
class MeanFlow(Objective):
    """The squared error of the mean velocity over a step from t to s; Geng et al. 2025, Algorithm 1.

    t is sampled as for every objective, and s, for a share of the images, uniformly between the data and t; for the
    others s = t. Each image's error is divided by its own size (their adaptive weight). The loss that is reported is
    the plain squared error; its gradient has the weight. A step costs one more forward pass, which is differentiated.
    Dropout is sampled again in that pass.

    The network has ``intervals: true``, the path is RectifiedFlow, the parameterization FlowVelocity. A network whose
    features of t change fast has large derivatives by it: ``RectifiedFlow(steps=100)`` trains better than 1000.

    Args:
        share: of the images with s < t (Geng et al.: 0.25 on ImageNet, 0.75 on CIFAR-10).
        power: p of the weight (error + 1e-3)^-p (Geng et al.: 1 on ImageNet, 0.75 on CIFAR-10); 0 for none, as data of
            few dimensions need it: the weight then depends on chance, and the mean velocity is no longer the optimum.

    Attributes:
        random: of the steps; ``None`` for torch's global generators.
    """

    random: PositionRandom | None = None

    def __init__(self, share: float = 0.5, power: float = 1.0) -> None:
        if not 0 < share <= 1 or not 0 <= power < math.inf:
            raise UserError(
                f"MeanFlow needs a share in (0, 1] and a power of at least 0, got {share} and {power}; for a "
                "share of 0 the objective is Simple"
            )
        self.share, self.power = share, power

    def check_denoiser(self, denoise: Denoiser) -> None:
        check_mean_velocity(denoise, "the objective MeanFlow")

    def with_random(self, random: PositionRandom) -> "MeanFlow":
        objective = copy(self)
        objective.random = random
        return objective

    def losses(self, denoise: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        shares = self._sample_shares(x_0)
        t = t.to(shares.dtype)
        s = torch.where(shares[0] < self.share, shares[1] * t, t)
        x_t, v = q_sample(denoise.schedule, x_0, t, eps), eps - x_0
        # before the target: autocast keeps the weights that it casts, and those cast there have no gradient
        output, _ = denoise.over_step(s).network_output(x_t, t)
        error = simple_loss(self.target(denoise, x_t, v, t, s), output)
        weighted = (error.detach() + 1e-3) ** -self.power * error
        return weighted + (error - weighted).detach()

    def _sample_shares(self, x_0: Tensor) -> Tensor:
        """Return two uniform numbers of each image, (2, b): which images have a step, and its end as a share of t."""
        if self.random is None:
            return torch.rand(2, len(x_0), device=x_0.device)
        return self.random(lambda n, each: torch.rand(2, n, device=each.device, generator=each).T).T

    def target(self, denoise: Denoiser, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return v - (t - s) du/dt (b, c, h, w) without gradient, the right-hand side of the MeanFlow identity.

        Args:
            denoise: the network.
            x_t: (b, c, h, w) noisy images.
            v: (b, c, h, w) their velocity, per unit of t/T: eps - x_0, or its mean given x_t.
            t: (b,) real times in [1, T].
            s: (b,) the ends of the steps, 0 <= s <= t.
        """
        path = denoise.schedule
        x, _ = denoise.parameterization.network_input(path, x_t, t)
        rate = torch.full_like(t, path.T)  # of t, by t/T; s does not change, so that t - s changes as t does
        with _differentiate_forwards():
            x, time, interval = _make_duals((x, t, t - s), (v, rate, rate))
            output = denoise.network(x, time, interval=interval)
            change = forward_ad.unpack_dual(output).tangent  # type: ignore[no-untyped-call]
        return v if change is None else v - scale((t - s) / path.T, change.to(v.dtype))


def _make_duals(values: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    """Return the values with the directions in which they are changed."""
    return [forward_ad.make_dual(*each) for each in zip(values, tangents, strict=True)]  # type: ignore[no-untyped-call]


@cache
def _load_rules() -> None:
    """Let torch compile its rules of forward-mode differentiation, at which it warns of its own deprecated compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with forward_ad.dual_level():
            _make_duals([torch.zeros(())], [torch.zeros(())])


@contextmanager
def _differentiate_forwards() -> Iterator[None]:
    """Let networks be differentiated forwards inside: fused attention, compiled code and, on a CPU, autocast cannot be.

    On a CPU, GroupNorm of half precision has derivatives in float32, which the convolution behind it refuses.
    """
    _load_rules()
    eager, exact = torch.compiler.set_stance("force_eager"), torch.autocast("cpu", enabled=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), eager, exact, forward_ad.dual_level():
        yield
