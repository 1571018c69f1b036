"""DDIM against diffusers and against ancestral sampling; its inversion and interpolation."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers.command_line import REPOSITORY
from helpers.known_data import TWO, randn
from helpers.sampler_checks import (
    LINEAR,
    PARAMETERIZATIONS,
    SeededNoise,
    compute_moments,
    every_parameterization,
    find_largest_difference,
    gaussian_denoiser,
    measure_orders,
    network,
    randn64,
    space_by_angle,
    truncate_schedule,
    use_float64_tables,
    with_and_without_clipping,
)
from torch import Tensor

from lightning_ddpm.data import Digits
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.diffusion import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    Cosine,
    Denoiser,
    FixedSmall,
    Linear,
    NoiseSchedule,
    Quadratic,
    Velocity,
    ZeroTerminalSNR,
    interpolate,
    invert,
    quadratic_spacing,
    trailing_spacing,
    uniform_spacing,
)
from lightning_ddpm.diffusion.process import posterior_variance
from lightning_ddpm.diffusion.samplers.ddim import slerp
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.errors import UserError

DIGITS_CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


# ---- against diffusers -----------------------------------------------------------------------------------------------


def step_once(s: int, t: int, eta: float, denoise: Denoiser, x: Tensor, noise: Tensor) -> Tensor:
    """Make our step from t to any s, as the first one of a chain that starts at t."""
    times = [s, t] if s > 0 else [t]
    sampler = DDIM(len(times), eta, lambda T, steps: times)
    from_t = Denoiser(denoise.network, truncate_schedule(t), denoise.clip, denoise.parameterization)
    return next(sampler.trajectory(from_t, x, lambda like: noise))


@with_and_without_clipping
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1000, 50])
@every_parameterization
def test_every_ddim_step_equals_diffusers_for_any_spacing(
    parameterization: str, steps: int, eta: float, clip: float | None
) -> None:
    # diffusers steps from any t to t - T // steps: stepping from all 1000 t covers every step of every spacing.
    theirs = use_float64_tables(
        DDIMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type=parameterization, clip_sample=clip is not None)
    )
    theirs.set_timesteps(steps)
    denoise = Denoiser(network, LINEAR, clip, PARAMETERIZATIONS[parameterization])
    x, noise, largest = randn(2, 3, 2, 2), randn(2, 3, 2, 2, seed=1), 0.0
    rederived = clip is not None
    for t in range(1, 1001):
        output = network(x, torch.tensor([t, t]))
        step = theirs.step(output, t - 1, x, eta, use_clipped_model_output=rederived, variance_noise=noise)
        previous = max(t - 1000 // steps, 0)
        # diffusers adds noise at the last step too
        our_step = step_once(previous, t, eta, denoise, x, noise)
        last = eta * posterior_variance(LINEAR, previous, t).sqrt().float() * noise if previous == 0 else 0
        largest = max(largest, (step.prev_sample - our_step - last).abs().max().item())
    assert largest < 1e-5


@pytest.mark.parametrize(("steps", "eta"), [(10, 0.0), (10, 0.3), (10, 1.0), (50, 0.0), (50, 1.0)])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@with_and_without_clipping
def test_every_step_of_a_ddim_chain_equals_diffusers(spacing: str, steps: int, eta: float, clip: float | None) -> None:
    theirs = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=clip is not None, timestep_spacing=spacing, set_alpha_to_one=True
    )
    use_float64_tables(theirs).set_timesteps(steps)
    times = (theirs.timesteps.flip(0) + 1).tolist()
    if spacing == "trailing":
        assert times == trailing_spacing(1000, steps)
    # ``leading`` starts before T, which here is a schedule with fewer betas
    schedule = truncate_schedule(times[-1])
    generator = torch.Generator().manual_seed(1)

    def step(eps: Tensor, t: int, x: Tensor) -> Tensor:
        stepped = theirs.step(eps, t, x, eta=eta, use_clipped_model_output=clip is not None, generator=generator)
        return stepped.prev_sample

    sampler = DDIM(steps, eta, spacing=lambda T, steps: times)
    assert find_largest_difference(sampler, Denoiser(network, schedule, clip), times, step) < 1e-5


@with_and_without_clipping
@pytest.mark.parametrize("parameterization", ["sample", "v_prediction"])
def test_every_step_under_zero_terminal_snr_equals_diffusers(parameterization: str, clip: float | None) -> None:
    schedule = ZeroTerminalSNR(LINEAR)
    settings = {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    settings |= {"prediction_type": parameterization, "clip_sample": clip is not None}
    ddpm, ddim = (use_float64_tables(kind(**settings)) for kind in (DDPMScheduler, DDIMScheduler))
    generator = torch.Generator().manual_seed(1)
    denoise = Denoiser(network, schedule, clip, PARAMETERIZATIONS[parameterization])

    def ancestral_step(output: Tensor, t: int, x: Tensor) -> Tensor:
        return ddpm.step(output, t, x, generator=generator).prev_sample

    def ddim_step(output: Tensor, t: int, x: Tensor) -> Tensor:
        return ddim.step(output, t, x, use_clipped_model_output=clip is not None).prev_sample

    assert find_largest_difference(Ancestral(FixedSmall()), denoise, list(range(1, 1001)), ancestral_step) < 1e-5
    ddim.set_timesteps(20)
    assert (
        find_largest_difference(DDIM(20, spacing=trailing_spacing), denoise, trailing_spacing(1000, 20), ddim_step)
        < 1e-5
    )


# ---- against its formulas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, Cosine(100), Quadratic(100)], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    ("steps", "spacing"), [(None, uniform_spacing), (20, uniform_spacing), (20, quadratic_spacing)]
)
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance(
    schedule: NoiseSchedule, steps: int | None, spacing: Callable[[int, int], list[int]]
) -> None:
    denoise, x_T = Denoiser(network, schedule), randn(2, 3, 4, 4, dtype=torch.float64)
    ddim_step = DDIM(steps, 1.0, spacing).trajectory(denoise, x_T, SeededNoise(1))
    ancestral_step = Ancestral(FixedSmall(), steps, spacing).trajectory(denoise, x_T, SeededNoise(1))
    for ours, theirs in zip(ddim_step, ancestral_step, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_ddim_with_eta_0_is_a_function_of_x_T() -> None:
    def no_noise(like: Tensor) -> Tensor:
        raise AssertionError("eta = 0 uses no noise")

    x_T = randn(2, 3, 4, 4)
    denoise = Denoiser(network, LINEAR)
    assert torch.equal(DDIM(10).sample(denoise, x_T, no_noise), DDIM(10).sample(denoise, x_T, no_noise))


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing])
def test_ddim_rotates_standard_normal_data_by_the_angle_of_each_step(
    spacing: Callable[[int, int], list[int]],
) -> None:
    # x^_0 = signal_t x_t and eps^ = noise_t x_t, so x_s = cos(angle_t - angle_s) x_t with noise = sin(angle)
    angle = torch.asin(LINEAR.noise)[[0, *spacing(1000, 10)]]
    _, variance = compute_moments(DDIM(10, 0.0, spacing), gaussian_denoiser(LINEAR, 0.0, 1.0))
    assert variance == pytest.approx(angle.diff().cos().square().prod().item(), rel=1e-10)


def test_ddim_is_of_first_order() -> None:
    assert measure_orders(lambda n: DDIM(n, spacing=space_by_angle), (20, 40, 80, 160)) == pytest.approx(
        [1] * 3, abs=0.1
    )


def test_the_mean_of_the_data_is_exact_only_under_zero_terminal_snr() -> None:
    # Lin et al. 2023, section 3: only then is x_T ~ N(0, I) what training saw at T, and one step gives exactly E[x_0]
    schedule = ZeroTerminalSNR(Linear(100, 1e-3, 0.02))

    def v(x_t: Tensor, t: Tensor) -> Tensor:  # E[v | x_t] of x_0 ~ N(0.8, 0.1^2)
        signal, noise = (table[t].view(-1, 1, 1, 1) for table in (schedule.signal, schedule.noise))
        x_0 = 0.8 + 0.01 * signal * (x_t - 0.8 * signal) / (0.01 * signal**2 + noise**2)
        return Velocity().target(schedule, x_0, (x_t - signal * x_0) / noise, t)

    denoise = Denoiser(v, schedule, None, Velocity())
    x_T = randn(2, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(DDIM(1).sample(denoise, x_T), torch.full_like(x_T, 0.8), rtol=0, atol=1e-12)
    mean, _ = compute_moments(DDIM(100), denoise)
    assert mean == pytest.approx(0.8, abs=1e-12)
    sampled_mean, _ = compute_moments(DDIM(100), gaussian_denoiser(Linear(100, 1e-3, 0.02), 0.8, 0.1))
    assert sampled_mean < 0.78


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_1_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match=r"eta must lie in \[0, 1\]"):
        DDIM(10, eta)


# ---- inversion and interpolation -------------------------------------------------------------------------------------


def test_inversion_finds_the_noise_of_an_image() -> None:
    schedule = Linear(1000)
    denoise, x_0 = TWO.denoiser(schedule), TWO.means.reshape(-1, 1, 1, 2) + 0.1
    errors = [float((DDIM(n).sample(denoise, invert(denoise, x_0, n)) - x_0).abs().max()) for n in (50, 200, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01
    converged = AdaptiveODE(1e-6).sample(denoise, invert(denoise, x_0, None))
    torch.testing.assert_close(converged, x_0, rtol=0, atol=0.02)


def test_digits_are_reconstructed_from_their_inversion() -> None:
    model = load(DIGITS_CKPT, DDPM)
    x_0 = to_float(Digits().open(Path(), "test").__getitems__(range(16))[0])
    with torch.no_grad():
        x_T = invert(model.denoiser, x_0, 100)
        reconstructed = DDIM(100).sample(model.denoiser, x_T)
    psnr = 10 * torch.log10(4 / (reconstructed - x_0).square().flatten(1).mean(1))
    assert float(psnr.mean()) > 35
    assert float(psnr.min()) > 25
    assert float(x_T.std()) == pytest.approx(
        0.85, abs=0.15
    )  # almost 1: digits cover only a part of what the model samples


def test_slerp_keeps_the_norm_and_has_the_given_ends() -> None:
    a, b = randn64(3, 4, seed=1), randn64(3, 4, seed=2)
    b = b * a.norm() / b.norm()
    points = slerp(a, b, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[3], b)
    torch.testing.assert_close(points.flatten(1).norm(dim=1), a.norm().expand(4))
    torch.testing.assert_close(points[2], (a + b) * a.norm() / (a + b).norm())
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.5]))[0], a)


@torch.no_grad()
def test_an_interpolation_of_two_digits_starts_and_ends_with_them() -> None:
    model = load(DIGITS_CKPT, DDPM)
    first, second = to_float(Digits().open(None, "test").__getitems__([3, 4])[0])  # type: ignore[arg-type]
    images = interpolate(model.denoiser, first, second, torch.linspace(0, 1, 5), DDIM(100))
    for restored, real in ((images[0], first), (images[4], second)):
        assert 10 * math.log10(4 / float((restored - real).square().mean())) > 30  # PSNR in dB
    middle = images[2]
    assert min(float((middle - end).square().mean()) for end in (first, second)) > 0.02
    with pytest.raises(UserError, match=r"needs DDIM with eta=0, got eta=0\.5"):
        interpolate(model.denoiser, first, second, torch.zeros(1), DDIM(10, eta=0.5))
