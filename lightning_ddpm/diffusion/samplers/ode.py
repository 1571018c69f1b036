"""Sampling and likelihood with the probability-flow ODE; Song et al. 2021 (arXiv:2011.13456), section 4.3.

The ODE is dx/dt = -1/2 beta(t) (x + score). As a function of the angle phi = atan(noise / signal), which is 0 at the
data and pi/2 where no signal is left, it has neither beta nor a singularity: x = cos(phi) x_0 + sin(phi) eps, and
dx/dphi = v, the velocity.

Cost: as many network evaluations (NFE) as the tolerance requires, at least 7. Fifth order, deterministic given x_T.
"""

import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.process import compute_velocity
from lightning_ddpm.diffusion.samplers.base import Denoiser, Noise, Sampler
from lightning_ddpm.utils.errors import UserError

State = tuple[Tensor, ...]
"""The tensors (b, ...) that an ODE describes together."""

Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]
"""(field, x (b, c, h, w)) -> the field at x and its divergence there (b,), exact or estimated."""


@final
class AdaptiveODE(Sampler):
    """Solves the probability-flow ODE with the adaptive Dormand-Prince method of order 5.

    Song et al. 2021, section 4.3, with tolerance 1e-5; the solver is torchdiffeq's. It runs from T to t = 1, and
    DDIM's step gives x_0. Every image of a batch meets the tolerance, and the one with the largest error determines the
    step size: the others are slightly more accurate than they would be alone.

    Args:
        tolerance: limit of an image's root mean square error per step, relative and absolute.
    """

    def __init__(self, tolerance: float = 1e-4) -> None:
        if not 0 < tolerance < 1:
            raise UserError(f"the tolerance must lie between 0 and 1, got {tolerance}; Song et al. use 1e-5")
        self.tolerance = tolerance

    def nfe(self, T: int) -> None:
        return None

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule = denoise.schedule

        def derivative(phi: Tensor, state: State) -> State:
            return (probability_flow(denoise, state[0], phi),)

        ends = schedule.angle_at(torch.tensor([schedule.T, 1], device=x_T.device))
        (x_1,) = solve_ode(derivative, (x_T,), ends, self.tolerance)
        yield x_1
        yield denoise(x_1, 1).x_0


def probability_flow(denoise: Denoiser, x: Tensor, phi: Tensor) -> Tensor:
    """Return dx/dphi (b, c, h, w) at the angle phi, a scalar between the path's phi_1 and phi_T."""
    t = denoise.schedule.time_at(phi).clamp(1, denoise.schedule.T)
    x_0, eps = denoise(x, t)
    return compute_velocity(denoise.schedule, x_0, eps, t)


def flow_log_likelihood(denoise: Denoiser, x: Tensor, divergence: Divergence, tolerance: float = 1e-4) -> Tensor:
    """Compute log p(x) under the flow with the instantaneous change of variables; Song et al. 2021, eq. 39.

    The images are taken to be x_1, the lowest noise level that the network was trained on.

    Args:
        denoise: predicts x_0 and eps; without clipping, because the flow must be smooth.
        x: (b, c, h, w) images with continuous values; integers are dequantised first, as FlowLikelihood does.
        divergence: exact, or an unbiased estimate.
        tolerance: of the solver, per image and step.

    Returns:
        (b,) nats.
    """
    schedule = denoise.schedule

    def derivative(phi: Tensor, state: State) -> State:
        v, div = divergence(lambda x: probability_flow(denoise, x, phi), state[0])
        return v, div / x[0].numel()

    start = x, x.new_zeros(len(x))
    ends = schedule.angle_at(torch.tensor([1, schedule.T], device=x.device))
    x_T, change = solve_ode(derivative, start, ends, tolerance)
    prior = -0.5 * (x_T.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return prior + x[0].numel() * change


def exact_divergence(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field at x and the trace of its Jacobian (b,); one backward pass for every value of an image."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        v = field(x)
        diagonal = [
            torch.autograd.grad(v.flatten(1)[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i]
            for i in range(x[0].numel())
        ]
    return v.detach(), torch.stack(diagonal).sum(0)


def hutchinson_divergence(probe: Tensor) -> Divergence:
    """Return an unbiased estimator probe^T J probe of the trace of the Jacobian J; Song et al. 2021, eq. 40.

    Args:
        probe: (b, c, h, w) with zero mean and unit covariance; +-1 has the lowest variance. The same probe is used for
            a whole solution. One backward pass per evaluation.
    """

    def estimate(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            v = field(x)
            (probe_jacobian,) = torch.autograd.grad((v * probe).sum(), x)
        return v.detach(), (probe_jacobian * probe).flatten(1).sum(1)

    return estimate


def solve_ode(derivative: Callable[[Tensor, State], State], state: State, times: Tensor, tolerance: float) -> State:
    """Return the state at the second time of an ODE that has ``state`` at the first; every image meets the tolerance.

    Args:
        derivative: (scalar, state) -> its derivative.
        state: tensors (b, ...).
        times: (2,) the first and the last time.
        tolerance: limit of an image's root mean square error per step in each tensor of the state, relative and
            absolute.

    Returns:
        The state; the given one where the two times are equal, as the angles of t = 1 and T are for T = 1; NaN where
        the derivative is not finite, so that no step is small enough.
    """
    from torchdiffeq import odeint

    if times[0] == times[1]:
        return state

    def largest_error(errors: State) -> Tensor:
        return torch.stack([each.reshape(len(each), -1).square().mean(1).max() for each in errors]).max().sqrt()

    is_first = True

    def check_first(time: Tensor, state: State) -> State:
        """Compute the derivative; the first one must be finite, or the solver would take its first step to t = NaN."""
        nonlocal is_first
        found = derivative(time, state)
        if is_first and not all(bool(each.isfinite().all()) for each in found):
            raise FloatingPointError("non-finite derivative")
        is_first = False
        return found

    options = {"norm": largest_error, "dtype": times.dtype}
    try:
        path = odeint(check_first, state, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    except (AssertionError, FloatingPointError) as error:
        if not str(error).startswith(("underflow in dt", "non-finite")):  # torchdiffeq's words, and ours above
            raise
        return tuple(torch.full_like(each, torch.nan) for each in state)
    return tuple(each[-1] for each in path)
