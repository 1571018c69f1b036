"""Sampling, and likelihood, by the probability-flow ODE; Song et al. 2021 (arXiv:2011.13456), section 4.3.

dx/dt = -1/2 beta(t) (x + score). In the angle phi = atan(noise / signal), from 0 at the data to pi/2 where no signal is
left, it has neither beta nor a singularity: x = cos(phi) x_0 + sin(phi) eps, and dx/dphi = v, the velocity.
"""

import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.diffusion.denoiser import Denoiser
from lightning_ddpm.diffusion.process import compute_velocity
from lightning_ddpm.diffusion.samplers.base import Noise, Sampler
from lightning_ddpm.utils.errors import UserError

Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]
"""(field, x (b, c, h, w)) -> the field at x, and its divergence there (b,), exact or estimated."""


@final
class AdaptiveODE(Sampler):
    """The probability-flow ODE by Dormand & Prince's method of order 5, its steps as long as the tolerance allows.

    Song et al. 2021, section 4.3, who use 1e-5; the solver is torchdiffeq's. From T to t = 1, then DDIM's step.
    Every image of a batch meets the tolerance, and the worst of them sets the pace: the others are a little better than
    they would be alone. Spends as many network evaluations as that takes, 7 at least.

    Args:
        tolerance: of an image's root mean square error a step, relative and absolute.
    """

    def __init__(self, tolerance: float = 1e-4) -> None:
        if not 0 < tolerance < 1:
            raise UserError(f"the tolerance must lie between 0 and 1, got {tolerance}; Song et al. use 1e-5")
        self.tolerance = tolerance

    def nfe(self, T: int) -> None:
        return None

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Noise = torch.randn_like) -> Iterator[Tensor]:
        schedule = denoise.schedule

        def derivative(phi: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (probability_flow(denoise, state[0], phi),)

        (x_1,) = solve_ode(derivative, (x_T,), schedule.angle[-1], schedule.angle[1], self.tolerance)
        yield x_1
        yield denoise(x_1, 1).x_0


def probability_flow(denoise: Denoiser, x: Tensor, phi: Tensor) -> Tensor:
    """dx/dphi (b, c, h, w) at the angle phi, a scalar between the schedule's phi_1 and phi_T."""
    t = denoise.schedule.time_at(phi).clamp(1, denoise.schedule.T)
    x_0, eps = denoise(x, t)
    return compute_velocity(denoise.schedule, x_0, eps, t)


def flow_log_likelihood(denoise: Denoiser, x: Tensor, divergence: Divergence, tolerance: float = 1e-4) -> Tensor:
    """log p(x) under the flow, by the change of variables along it; Song et al. 2021, eq. 39.

    The images are taken to be x_1, the least noise that the network knows.

    Args:
        denoise: the network, read without clipping: the flow must be smooth.
        x: (b, c, h, w) images without grey levels: see :func:`dequantise`.
        divergence: exact, or an estimate that is right on average.
        tolerance: of the solver, an image and step.

    Returns:
        (b,) nats.
    """
    schedule = denoise.schedule

    def derivative(phi: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        v, div = divergence(lambda x: probability_flow(denoise, x, phi), state[0])
        return v, div / x[0].numel()

    start = x, x.new_zeros(len(x))
    x_T, change = solve_ode(derivative, start, schedule.angle[1], schedule.angle[-1], tolerance)
    prior = -0.5 * (x_T.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return prior + x[0].numel() * change


def dequantise(x_0: Tensor, u: Tensor) -> Tensor:
    """Spread each grey level over its bin of 2/255 by ``u``, uniform on [0, 1): integers have no density."""
    return x_0 + (2 * u - 1) / 255


def flow_bits_per_dim(log_likelihood: Tensor, dimensions: int) -> Tensor:
    """log p of dequantised images in nats -> bits/dim of the images: a bound, as bins of 2/255 hold at least that."""
    return -log_likelihood / (dimensions * math.log(2)) - math.log2(2 / 255)


def exact_divergence(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The field at x and the trace of its Jacobian (b,): one backward pass for every value of an image."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        v = field(x)
        diagonal = [
            torch.autograd.grad(v.flatten(1)[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i]
            for i in range(x[0].numel())
        ]
    return v.detach(), torch.stack(diagonal).sum(0)


def hutchinson_divergence(probe: Tensor) -> Divergence:
    """The trace of the Jacobian J as probe J probe, right on average: one backward pass; Song et al. 2021, eq. 40.

    Args:
        probe: (b, c, h, w) of zero mean and unit covariance, +-1 having the least variance; kept for a whole solution.
    """

    def estimate(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            v = field(x)
            (along,) = torch.autograd.grad((v * probe).sum(), x)
        return v.detach(), (along * probe).flatten(1).sum(1)

    return estimate


def solve_ode(
    derivative: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    start: Tensor,
    stop: Tensor,
    tolerance: float,
) -> tuple[Tensor, ...]:
    """The state at ``stop`` of an ODE with ``state`` at ``start``, every image within the tolerance at every step.

    Args:
        derivative: (scalar, state) -> its derivative.
        state: tensors (b, ...).
        start, stop: scalars.
        tolerance: of an image's root mean square error in each tensor of the state, relative and absolute.
    """
    from torchdiffeq import odeint

    def worst(errors: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([each.reshape(len(each), -1).square().mean(1).max() for each in errors]).max().sqrt()

    times = torch.stack([start, stop])
    options = {"norm": worst, "dtype": times.dtype}
    path = odeint(derivative, state, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    return tuple(each[-1] for each in path)
