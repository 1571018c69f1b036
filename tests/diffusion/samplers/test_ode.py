"""The probability-flow ODE: its solvers against diffusers' and their orders; its density against known data."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from helpers.command_line import REPOSITORY
from helpers.known_data import ONE, TWO, Mixture, randn
from helpers.tiny import tiny_model
from torch import Tensor

from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.diffusion import (
    DDIM,
    X0,
    AdaptiveODE,
    Cosine,
    Denoiser,
    DPMSolverPP,
    Epsilon,
    Heun,
    Linear,
    NoiseSchedule,
    Parameterization,
    Sampler,
    Velocity,
    ZeroTerminalSNR,
    dequantise,
    exact_divergence,
    flow_bits_per_dim,
    flow_log_likelihood,
    hutchinson_divergence,
    invert,
    trailing_spacing,
)
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.errors import UserError

FINE = Linear(20_000, beta_min=5e-6, beta_max=1e-3)
"""Ho et al.'s schedule in steps so small that every spacing can be had."""


SMOOTH = Mixture([0.3, 0.7], [[-0.7, 0.2], [0.5, -0.3]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, -0.1], [-0.1, 0.2]]])
"""Wide enough for a solver of few steps to be near its limit."""


def by_angle(T: int, steps: int) -> list[int]:
    """Equal steps in the angle, under FINE."""
    angles = torch.linspace(float(FINE.angle[1]), float(FINE.angle[-1]), steps, dtype=torch.float64)
    return [round(float(t)) for t in FINE.time_at(angles)]


def by_lambda(T: int, steps: int) -> list[int]:
    """Equal steps in lambda = log(signal / noise), under FINE, from t = 20: below, the steps are too coarse."""
    lambdas = (FINE.signal[1:] / FINE.noise[1:]).log()
    wanted = torch.linspace(float(lambdas[19]), float(lambdas[-1]), steps, dtype=torch.float64)
    return [int((lambdas - each).abs().argmin()) + 1 for each in wanted]


def orders(make: Callable[[int], Sampler], steps: tuple[int, ...]) -> list[float]:
    """By which power of the number of steps the error falls, from each number to the next."""
    denoise, x_T = SMOOTH.denoiser(FINE), randn(64, 1, 1, 2, dtype=torch.float64)
    truth = Heun(1600, spacing=by_angle).sample(denoise, x_T)
    errors = [float((make(n).sample(denoise, x_T) - truth).abs().mean()) for n in steps]
    return [math.log(a / b) / math.log(m / n) for a, b, n, m in zip(errors, errors[1:], steps, steps[1:], strict=False)]


def test_ddim_is_of_the_first_order() -> None:
    assert orders(lambda n: DDIM(n, spacing=by_angle), (20, 40, 80, 160)) == pytest.approx([1] * 3, abs=0.1)


def test_heun_is_of_the_second_order() -> None:
    assert orders(lambda n: Heun(n, spacing=by_lambda), (24, 48, 96)) == pytest.approx([2] * 2, abs=0.15)


def test_dpm_solver_is_of_the_second_order() -> None:
    assert orders(lambda n: DPMSolverPP(n, spacing=by_lambda), (24, 48, 96)) == pytest.approx([2] * 2, abs=0.25)


def test_the_adaptive_solver_is_as_exact_as_asked() -> None:
    denoise, x_T = TWO.denoiser(FINE), randn(64, 1, 1, 2, dtype=torch.float64)
    truth = Heun(1600, spacing=by_angle).sample(denoise, x_T)
    errors = [float((AdaptiveODE(each).sample(denoise, x_T) - truth).abs().mean()) for each in (1e-2, 1e-4, 1e-6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 1e-3
    assert errors[2] < 1e-4


def test_an_image_by_the_adaptive_solver_depends_on_its_neighbours_by_less_than_half_a_grey_level() -> None:
    denoise, x_T = ONE.denoiser(FINE), randn(16, 1, 1, 2, dtype=torch.float64)
    together = AdaptiveODE(1e-5).sample(denoise, x_T)
    alone = torch.cat([AdaptiveODE(1e-5).sample(denoise, each[None]) for each in x_T])
    torch.testing.assert_close(together, alone, rtol=0, atol=1 / 255)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers hands numpy a tensor
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction", [Epsilon(), X0(), Velocity()], ids=repr)
@pytest.mark.parametrize("steps", [10, 1000])
def test_every_step_of_dpm_solver_is_diffusers(steps: int, prediction: Parameterization, algorithm: str) -> None:
    schedule = Linear(1000)
    theirs = DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type={"Epsilon": "epsilon", "X0": "sample", "Velocity": "v_prediction"}[repr(prediction)],
        algorithm_type=algorithm,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    alpha_bar = schedule.alpha_bar[theirs.timesteps + 1]
    sigmas = torch.cat([(1 / alpha_bar - 1).sqrt(), torch.zeros(1)])
    torch.testing.assert_close(theirs.sigmas.double(), sigmas, rtol=1e-4, atol=0)
    theirs.sigmas = sigmas  # theirs come from float32's 1 - alpha_bar, which alone moves a step of 1000 by 1.1e-5

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        """What the network says who takes some image of order 1 for x_0."""
        x_0 = 0.5 * torch.sin(3 * x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 100)
        eps = (x_t - schedule.signal[t[0]].float() * x_0) / schedule.noise[t[0]].float()
        return prediction.target(schedule, x_0, eps, t)

    denoise = Denoiser(network, schedule, clip=None, parameterization=prediction)
    draws: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        draws.append(randn(*x.shape, seed=len(draws)))
        return draws[-1]

    eta = float(algorithm.startswith("sde"))
    x = randn(2, 1, 4, 4, seed=99)
    ours = DPMSolverPP(steps, eta=eta, spacing=trailing_spacing).trajectory(denoise, x, noise)
    for index, (t, x_s) in enumerate(zip(theirs.timesteps, ours, strict=True)):
        drawn = draws[index] if index < len(draws) else torch.zeros_like(x)
        step = theirs.step(network(x, t.expand(2) + 1), t, x, variance_noise=drawn)
        torch.testing.assert_close(x_s, step.prev_sample.float(), rtol=0, atol=1e-6)
        x = x_s
    assert index == steps - 1
    assert len(draws) == (steps - 1 if eta else 0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpm_solver_starts_where_there_is_no_signal(eta: float) -> None:
    schedule = ZeroTerminalSNR(Linear(100))
    denoise = Denoiser(lambda x, t: 0.3 * torch.sin(x), schedule, clip=None, parameterization=Velocity())
    x_0 = DPMSolverPP(10, eta=eta).sample(denoise, randn(4, 1, 2, 2))
    assert x_0.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", [Linear(1000), Cosine(1000), ZeroTerminalSNR(Linear(1000))], ids=repr)
@pytest.mark.parametrize("make", [DDIM, DPMSolverPP, Heun], ids=lambda make: make.__name__)
def test_few_steps_are_coarse_and_not_wild(make: Callable[[int], Sampler], schedule: NoiseSchedule, steps: int) -> None:
    """Heun's method on v, in the angle, threw images about where its last step but one was long."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = schedule.signal[t[0]], schedule.noise[t[0]]
        x_0 = signal * 0.09 / (signal**2 * 0.09 + noise**2) * x_t  # of data of standard deviation 0.3
        return signal * (x_t - signal * x_0) / noise - noise * x_0

    denoise = Denoiser(network, schedule, clip=None, parameterization=Velocity())
    x_0 = make(steps).sample(denoise, randn(2000, 1, 1, 1, dtype=torch.float64))
    assert float(x_0.std()) < 0.45


@pytest.mark.parametrize("sampler", [DPMSolverPP(10), DPMSolverPP(10, eta=1.0), Heun(10), Heun(None)], ids=repr)
def test_the_network_is_asked_as_often_as_is_announced(sampler: Sampler) -> None:
    asked = 0

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return x / 2

    sampler.sample(Denoiser(network, Linear(50)), randn(2, 1, 2, 2))
    assert asked == sampler.nfe(50)
    assert Heun(10).nfe(50) == 19
    assert AdaptiveODE().nfe(50) is None


@pytest.mark.parametrize("data", [ONE, TWO], ids=["one Gaussian", "two Gaussians"])
def test_the_flow_knows_the_density(data: Mixture) -> None:
    x = torch.stack(
        torch.meshgrid(*[torch.linspace(-1, 1, 9, dtype=torch.float64)] * 2, indexing="ij"), dim=-1
    ).reshape(-1, 1, 1, 2)
    likely = data.log_density(x) > -4
    got = flow_log_likelihood(data.denoiser(Cosine(20_000)), x[likely], exact_divergence, tolerance=1e-6)
    assert likely.sum() > 15
    # Nats a dimension; x is taken for x_1, whose noise blurs the density a little.
    torch.testing.assert_close(got / 2, data.log_density(x[likely]) / 2, rtol=0, atol=1e-3)


def test_hutchinsons_estimate_is_right_on_average() -> None:
    def field(x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        return torch.stack([first**2 * second, torch.sin(first) + second**3], dim=1).reshape(x.shape)

    x = randn(1, 1, 1, 2, dtype=torch.float64)
    first, second = x.flatten().tolist()
    v, divergence = exact_divergence(field, x)
    assert float(divergence) == pytest.approx(2 * first * second + 3 * second**2)
    torch.testing.assert_close(v, field(x))
    probes = [torch.tensor(signs, dtype=x.dtype).reshape(x.shape) for signs in ([1, 1], [1, -1])]
    estimates = [hutchinson_divergence(probe)(field, x) for probe in probes]
    assert float(sum(each for _, each in estimates)) / 2 == pytest.approx(float(divergence))
    assert float(estimates[0][1]) != pytest.approx(float(divergence))
    torch.testing.assert_close(estimates[0][0], field(x))


def test_a_networks_likelihood_needs_no_gradients_from_the_caller() -> None:
    model = tiny_model().eval()
    images = torch.zeros(2, 1, 8, 8)
    probe = torch.ones_like(images)
    denoise = Denoiser(model.network, model.schedule, clip=None)
    with torch.inference_mode():
        inside = flow_log_likelihood(denoise, images, hutchinson_divergence(probe), tolerance=1e-2)
    assert torch.equal(
        inside, flow_log_likelihood(denoise, images, hutchinson_divergence(probe), tolerance=1e-2).detach()
    )
    assert inside.shape == (2,)


def test_grey_levels_are_spread_over_their_bins_and_a_uniform_density_costs_8_bits() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    ends = torch.stack([dequantise(levels, torch.zeros(256)), dequantise(levels, torch.ones(256))])
    torch.testing.assert_close(ends[0, 1:], ends[1, :-1])
    width = float(ends[1, -1] - ends[0, 0])
    assert width == pytest.approx(2 + 2 / 255)
    assert float(flow_bits_per_dim(torch.tensor(-3 * math.log(width)), 3)) == pytest.approx(8)


def test_inversion_goes_to_the_noise_that_leads_back() -> None:
    schedule = Linear(1000)
    denoise, x_0 = TWO.denoiser(schedule), TWO.means.reshape(-1, 1, 1, 2) + 0.1
    errors = [float((DDIM(n).sample(denoise, invert(denoise, x_0, n)) - x_0).abs().max()) for n in (50, 200, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01
    exact = AdaptiveODE(1e-6).sample(denoise, invert(denoise, x_0, None))
    torch.testing.assert_close(exact, x_0, rtol=0, atol=0.02)


def test_digits_come_back_from_the_noise_that_inversion_finds() -> None:
    model = load(REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt", DDPM)
    x_0 = to_float(Digits().open(Path(), "test").__getitems__(range(16))[0])
    with torch.no_grad():
        x_T = invert(model.denoiser, x_0, 100)
        back = DDIM(100).sample(model.denoiser, x_T)
    psnr = 10 * torch.log10(4 / (back - x_0).square().flatten(1).mean(1))
    assert float(psnr.mean()) > 35
    assert float(psnr.min()) > 25
    assert float(x_T.std()) == pytest.approx(0.85, abs=0.15)  # noise, nearly: digits are not all that the model draws


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(UserError, match="tolerance must lie between 0 and 1"):
        AdaptiveODE(tolerance)
