"""The interface between a network and the samplers: a :class:`Denoiser` predicts x_0 and eps from (x_t, t)."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_ddpm.diffusion.clipping import Clipping, ClipToRange
from lightning_ddpm.diffusion.gaussian_path import GaussianPath, Timestep
from lightning_ddpm.diffusion.parameterization import Denoised, Epsilon, Parameterization
from lightning_ddpm.diffusion.process import x_0_to_eps
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.errors import UserError

NetworkFunction = Callable[..., Tensor]
"""(x_t (b, c, h, w), t (b,) in 1..T) -> (b, c, h, w), or (b, 2c, h, w) from a network that learns the variance too.

A conditional network takes a third argument, a :class:`Condition` or, where there is nothing else, labels (b,) int64
alone, with -1 for no class; without this argument it is unconditional. One with ``intervals`` takes the keyword
argument ``interval`` (b,), too: the t - s of a step from t to s, over which it predicts the mean velocity; without this
argument, the velocity at t."""


GuidedFunction = Callable[[Tensor, Timestep], Tensor]
"""A prediction like a network's; its t is the sampler's own, a number where that has one for the whole batch."""


class Denoiser:
    """Predicts x^_0 and eps^ from x_t and t with a network, whatever the network's output means.

    Args:
        network: predicts from (x_t, t); any callable, e.g. one that computes E[eps | x_t] in closed form.
        schedule: the noise schedule, or any other path, that the network was trained on.
        clip: half-width of the range of the data. x^_0 is clipped to [-clip, clip] before any mean is computed from it,
            and eps^ is recomputed from the clipped x^_0, so that the two still give x_t. ``None`` for unbounded data.
        parameterization: what the network's output means; ``None`` for the noise.
        levels: number of equally spaced values in [-1, 1] that the data have; ``None`` for continuous data, which have
            no discretised decoder.
        clipping: how x^_0 is clipped; ``None`` for :class:`ClipToRange`.

    Attributes:
        mask: (b, c, h, w) bool, or one for all images, the values that the data have; ``None`` for all. x^_0 is 0 at
            the others, which :class:`Objective` does not count.

    Raises:
        UserError: the parameterization cannot be used with the schedule.
    """

    def __init__(
        self,
        network: NetworkFunction,
        schedule: GaussianPath,
        clip: float | None = 1.0,
        parameterization: Parameterization | None = None,
        levels: int | None = 256,
        clipping: Clipping | None = None,
    ) -> None:
        self.network, self.schedule, self.clip, self.levels = network, schedule, clip, levels
        self.parameterization, self.clipping = parameterization or Epsilon(), clipping or ClipToRange()
        self.parameterization.check_schedule(schedule)
        self.guided: GuidedFunction | None = None
        self.intervals: bool = getattr(network, "intervals", False)
        self.mask: Tensor | None = None

    def with_network(self, network: NetworkFunction) -> "Denoiser":
        """Return a denoiser with the same settings and another network."""
        denoise = Denoiser(network, self.schedule, self.clip, self.parameterization, self.levels, self.clipping)
        denoise.mask = self.mask
        return denoise

    def with_guidance(self, guided: GuidedFunction) -> "Denoiser":
        """Return a denoiser with the same settings, and with a prediction that may depend on t being a number."""
        denoise = self.with_network(guided)
        denoise.guided = guided
        return denoise

    def conditioned_on(self, condition: Condition | Tensor) -> "Denoiser":
        """Return a denoiser that passes this condition, or labels (b,) alone, to the network with every batch."""
        condition = as_condition(condition)
        argument = condition.argument
        conditioned = self.with_network(lambda x_t, t, **interval: self.network(x_t, t, argument, **interval))
        conditioned.intervals = self.intervals
        conditioned.mask = self.mask if condition.mask is None else condition.mask
        return conditioned

    def over_step(self, s: Timestep) -> "Denoiser":
        """Return a denoiser by the mean velocity of the step from t to s, of a network with ``intervals``.

        Its x^_0 and eps^ are the ends of the straight line through x_t and x_s: ``q_sample(path, x_0, s, eps)`` is x_s.
        """
        return self.with_network(lambda x_t, t: self.network(x_t, t, interval=t - s))

    def without_clipping(self) -> "Denoiser":
        """Return a denoiser with the same network that does not clip x^_0."""
        denoise = Denoiser(self.network, self.schedule, None, self.parameterization, self.levels)
        denoise.guided, denoise.intervals, denoise.mask = self.guided, self.intervals, self.mask
        return denoise

    def __call__(self, x_t: Tensor, t: Timestep) -> Denoised:
        """Predict x_0 and eps of a batch: one network evaluation.

        Args:
            x_t: (b, c, h, w) noisy images.
            t: the timestep of the whole batch, 1..T, or (b,) of them; real-valued in solvers that stop between them.
        """
        return self.interpret(x_t, *self.network_output(x_t, t), t)

    def call_network(self, x_t: Tensor, t: Timestep, condition: Condition | None = None) -> Tensor:
        """Return what the network predicts from x_t and t, given the condition if there is one."""
        if self.guided:
            return self.guided(x_t, t)
        given = () if condition is None else (condition.argument,)
        return self.network(*self.parameterization.network_input(self.schedule, x_t, t), *given)

    def network_output(self, x_t: Tensor, t: Timestep) -> tuple[Tensor, Tensor | None]:
        """Return the raw output (b, c, h, w), and nu = (v + 1) / 2 if the network has output channels for it.

        Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.1: v is -1 at beta~ and 1 at beta, and is not bounded.
        """
        output = self.call_network(x_t, t)
        if not isinstance(output, Tensor):
            raise UserError(f"the network must return a tensor in the shape of x_t, got {type(output).__name__}")
        output = output.to(x_t.dtype)
        if output.shape == x_t.shape:
            return output, None
        if output.shape != (len(x_t), 2 * x_t.shape[1], *x_t.shape[2:]):
            raise UserError(
                f"the network must return the shape of x_t, {tuple(x_t.shape)}, or twice its channels where it learns "
                f"the variance, got {tuple(output.shape)}"
            )
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2

    def interpret(self, x_t: Tensor, output: Tensor, nu: Tensor | None, t: Timestep) -> Denoised:
        """Convert the values of :meth:`network_output` to x^_0 and eps^, and clip x^_0."""
        x_0, eps = self.parameterization.to_denoised(self.schedule, x_t, output, t)
        if self.mask is not None:
            x_0 = torch.where(self.mask, x_0, 0.0)
            eps = torch.where(self.mask, eps, x_0_to_eps(self.schedule, x_t, x_0, t))
        if self.clip is None:
            return Denoised(x_0, eps, nu)
        clipped = self.clipping(x_0, self.clip)
        if clipped is x_0:  # eps computed from it again would lose its digits at low noise levels
            return Denoised(x_0, eps, nu)
        return Denoised(clipped, x_0_to_eps(self.schedule, x_t, clipped, t), nu)
