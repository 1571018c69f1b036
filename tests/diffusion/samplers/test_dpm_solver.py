"""DPM-Solver++: every step against diffusers, and its order."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from helpers.known_data import randn
from helpers.sampler_checks import measure_orders, space_by_lambda
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    Denoiser,
    DPMSolverPP,
    Epsilon,
    Linear,
    Parameterization,
    Velocity,
    ZeroTerminalSNR,
    trailing_spacing,
)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers passes a tensor to numpy
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("parameterization", [Epsilon(), X0(), Velocity()], ids=repr)
@pytest.mark.parametrize("steps", [10, 1000])
def test_every_step_of_dpm_solver_equals_diffusers(
    steps: int, parameterization: Parameterization, algorithm: str
) -> None:
    schedule = Linear(1000)
    theirs = DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type={"Epsilon": "epsilon", "X0": "sample", "Velocity": "v_prediction"}[repr(parameterization)],
        algorithm_type=algorithm,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    alpha_bar = schedule.alpha_bar[theirs.timesteps + 1]
    sigmas = torch.cat([(1 / alpha_bar - 1).sqrt(), torch.zeros(1)])
    torch.testing.assert_close(theirs.sigmas.double(), sigmas, rtol=1e-4, atol=0)
    theirs.sigmas = (
        sigmas  # diffusers' own come from float32 1 - alpha_bar, which alone changes a step of 1000 by 1.1e-5
    )

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        """Return the output of a network that predicts an arbitrary x_0 of order 1."""
        x_0 = 0.5 * torch.sin(3 * x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 100)
        eps = (x_t - schedule.signal[t[0]].float() * x_0) / schedule.noise[t[0]].float()
        return parameterization.target(schedule, x_0, eps, t)

    denoise = Denoiser(network, schedule, clip=None, parameterization=parameterization)
    noises: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        noises.append(randn(*x.shape, seed=len(noises)))
        return noises[-1]

    eta = float(algorithm.startswith("sde"))
    x = randn(2, 1, 4, 4, seed=99)
    ours = DPMSolverPP(steps, eta=eta, spacing=trailing_spacing).trajectory(denoise, x, noise)
    for index, (t, x_s) in enumerate(zip(theirs.timesteps, ours, strict=True)):
        noise_of_step = noises[index] if index < len(noises) else torch.zeros_like(x)
        step = theirs.step(network(x, t.expand(2) + 1), t, x, variance_noise=noise_of_step)
        torch.testing.assert_close(x_s, step.prev_sample.float(), rtol=0, atol=1e-6)
        x = x_s
    assert index == steps - 1
    assert len(noises) == (steps - 1 if eta else 0)


def test_dpm_solver_is_of_second_order() -> None:
    assert measure_orders(lambda n: DPMSolverPP(n, spacing=space_by_lambda), (24, 48, 96)) == pytest.approx(
        [2] * 2, abs=0.25
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpm_solver_starts_without_signal(eta: float) -> None:
    schedule = ZeroTerminalSNR(Linear(100))
    denoise = Denoiser(lambda x, t: 0.3 * torch.sin(x), schedule, clip=None, parameterization=Velocity())
    x_0 = DPMSolverPP(10, eta=eta).sample(denoise, randn(4, 1, 2, 2))
    assert x_0.isfinite().all()
