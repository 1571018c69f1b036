"""RectifiedFlow, FlowVelocity, DDIM and the flow's likelihood against Meta's flow_matching, whose time is 1 - t/T."""

import math

import pytest
import torch
from helpers.known_data import TWO, randn
from torch import Tensor

from lightning_ddpm.diffusion import DDIM, ContinuousPath, FlowVelocity, RectifiedFlow, q_sample, trailing_spacing
from lightning_ddpm.diffusion.process import to_path_scale
from lightning_ddpm.diffusion.samplers.ode import exact_divergence, flow_log_likelihood

pytest.importorskip("flow_matching")
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, LinearVPScheduler, Scheduler, VPScheduler
from flow_matching.solver import ODESolver

FLOW = RectifiedFlow(1000)


class VariancePreserving(ContinuousPath):
    """The VP-SDE of Song et al. 2021 (arXiv:2011.13456), eq. 29, in continuous time."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = t / self.T
        alpha = torch.exp(-0.25 * u**2 * (20 - 0.1) - 0.5 * u * 0.1)
        return alpha, (1 - alpha**2).sqrt()

    def time_at(self, angle: Tensor) -> Tensor:
        x = -angle.cos().log()
        return self.T * ((0.05**2 + 19.9 * x).sqrt() - 0.05) / (19.9 / 2)


class Trigonometric(ContinuousPath):
    """x_t = cos(phi) x_0 + sin(phi) eps with phi linear in t."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        phi = math.pi / 2 * t / self.T
        return phi.cos(), phi.sin()

    def time_at(self, angle: Tensor) -> Tensor:
        return self.T * angle / (math.pi / 2)


class SquareRoots(ContinuousPath):
    """alpha = 1 - t/T and sigma = sqrt(1 - alpha^2)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = 1 - t / self.T
        return alpha, (1 - alpha**2).sqrt()

    def time_at(self, angle: Tensor) -> Tensor:
        return self.T * (1 - angle.cos())


PATHS: list[tuple[ContinuousPath, Scheduler]] = [
    (FLOW, CondOTScheduler()),
    (VariancePreserving(1000), VPScheduler(beta_min=0.1, beta_max=20)),
    (Trigonometric(1000), CosineScheduler()),
    (SquareRoots(1000), LinearVPScheduler()),
]


@pytest.mark.parametrize(("path", "scheduler"), PATHS, ids=lambda each: type(each).__name__)
def test_points_and_conversions_of_a_path_are_theirs(path: ContinuousPath, scheduler: Scheduler) -> None:
    x_0, eps = randn(2, 5, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([1.0, 250.5, 500.0, 900.0, 999.0], dtype=torch.float64)
    theirs = AffineProbPath(scheduler)
    point = theirs.sample(x_0=eps, x_1=x_0, t=1 - t / 1000)
    x_t = to_path_scale(path, q_sample(path, x_0, t, eps), t)
    torch.testing.assert_close(x_t, point.x_t, rtol=0, atol=1e-10)
    torch.testing.assert_close(path.time_at(path.angle_at(t)), t, rtol=0, atol=1e-6)
    for i, each in enumerate(t):  # their conversions take one time
        at, vp = 1 - each / 1000, q_sample(path, x_0, each, eps)
        u = FlowVelocity().target(path, x_0[i], eps[i], each)
        found = FlowVelocity().to_denoised(path, vp[i : i + 1], u[None], each)
        velocity = theirs.target_to_velocity(found.x_0[0], point.x_t[i], at)
        torch.testing.assert_close(velocity, point.dx_t[i], rtol=0, atol=1e-7)
        if at < 0.99:  # they divide by sigma
            torch.testing.assert_close(found.eps[0], theirs.velocity_to_epsilon(velocity, point.x_t[i], at))
        if path is FLOW:
            torch.testing.assert_close(u, -point.dx_t[i], rtol=0, atol=1e-12)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """Return the exact velocity of the mixture, in their direction of time and shape (b, 2)."""
    time = (1000 * (1 - t)).double().reshape(1).expand(len(x))
    vp = (x / FLOW.scale_at(time[0])).reshape(-1, 1, 1, 2)
    return (TWO.x_0(FLOW, vp, time) - TWO.eps(FLOW, vp, time)).reshape(-1, 2)


def test_ddim_with_trailing_steps_is_their_euler_solver() -> None:
    x_T = randn(16, 1, 1, 2, dtype=torch.float64)
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    theirs = ODESolver(velocity).sample(x_T.reshape(-1, 2), 0.1, "euler", time_grid=grid, return_intermediates=True)
    ours = list(DDIM(10, spacing=trailing_spacing).trajectory(TWO.denoiser_for(FLOW, FlowVelocity()), x_T))
    for step, (each, expected) in enumerate(zip(ours, theirs[1:], strict=True), start=1):
        torch.testing.assert_close(
            (each * FLOW.scale_at(1000 - 100 * step)).reshape(-1, 2), expected, rtol=0, atol=1e-10
        )


def test_the_likelihood_is_theirs() -> None:
    x = torch.tensor([[0.3, -0.2], [0.6, -0.4], [-0.7, 0.2]], dtype=torch.float64)
    path = RectifiedFlow(100_000)  # ours takes x to be x_1
    denoise = TWO.denoiser_for(path, FlowVelocity())
    ours = flow_log_likelihood(denoise, x.reshape(-1, 1, 1, 2), exact_divergence, tolerance=1e-6)
    normal = torch.distributions.Normal(0.0, 1.0)
    grid = torch.tensor([1.0, 0.0], dtype=torch.float64)
    _, theirs = ODESolver(velocity).compute_likelihood(
        x, lambda z: normal.log_prob(z).sum(1), None, "dopri5", 1e-5, 1e-5, grid, exact_divergence=True
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)
    torch.testing.assert_close(ours, TWO.log_density(x), rtol=0, atol=5e-4)
