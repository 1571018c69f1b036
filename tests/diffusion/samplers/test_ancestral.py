"""Ancestral sampling against diffusers, against the posterior, and on standard normal data."""

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.known_data import randn
from helpers.sampler_checks import (
    LINEAR,
    PARAMETERIZATIONS,
    VARIANCES,
    SeededNoise,
    compute_moments,
    every_parameterization,
    find_largest_difference,
    gaussian_denoiser,
    network,
    network_with_variance,
    use_float64_tables,
    with_and_without_clipping,
)
from torch import Tensor

from lightning_ddpm.diffusion import Ancestral, Denoiser, FixedLarge, FixedSmall, uniform_spacing
from lightning_ddpm.diffusion.process import posterior_variance, q_posterior, transition_variance


@with_and_without_clipping
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [1000, 50])
@every_parameterization
def test_every_ancestral_step_equals_diffusers(
    parameterization: str, steps: int, variance: str, clip: float | None
) -> None:
    theirs = use_float64_tables(
        DDPMScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            variance_type=variance,
            prediction_type=parameterization,
            clip_sample=clip is not None,
            timestep_spacing="linspace",
        )
    )
    theirs.set_timesteps(steps)
    times = (theirs.timesteps.flip(0) + 1).tolist()
    generator = torch.Generator().manual_seed(1)

    def step(output: Tensor, t: int, x: Tensor) -> Tensor:
        return theirs.step(output, t, x, generator=generator).prev_sample

    denoise = Denoiser(
        network_with_variance if variance == "learned_range" else network,
        LINEAR,
        clip,
        PARAMETERIZATIONS[parameterization],
    )
    assert find_largest_difference(Ancestral(VARIANCES[variance], steps), denoise, times, step) < 1e-5


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=repr)
def test_an_ancestral_step_is_the_posterior_mean_plus_noise_of_the_chosen_variance(
    variance: FixedSmall | FixedLarge,
) -> None:
    denoise, x, noise = Denoiser(network, LINEAR), randn(2, 3, 4, 4, dtype=torch.float64), SeededNoise(1)
    expected_noise, times = SeededNoise(1), uniform_spacing(1000, 10)
    sampler = Ancestral(variance, steps=10)
    for (s, t), x_s in zip(
        reversed(list(zip([0, *times], times, strict=False))), sampler.trajectory(denoise, x, noise), strict=True
    ):
        mean, small = q_posterior(LINEAR, x, denoise(x, t).x_0, s, t)
        large = transition_variance(LINEAR, s, t)
        sigma = (large if isinstance(variance, FixedLarge) else small).sqrt()
        expected = mean if s == 0 else mean + sigma * expected_noise(x)
        torch.testing.assert_close(x_s, expected, rtol=0, atol=1e-12)
        x = x_s


def test_fixed_large_is_the_transition_variance_and_fixed_small_the_posterior_variance() -> None:
    for s, t in [(0, 1), (1, 2), (499, 500), (980, 1000), (0, 1000)]:
        assert FixedLarge().variance(LINEAR, s, t) == transition_variance(LINEAR, s, t)
        assert FixedSmall().variance(LINEAR, s, t) == posterior_variance(LINEAR, s, t)
    assert FixedSmall().variance(LINEAR, 1, 2) < 0.5 * FixedLarge().variance(LINEAR, 1, 2)


@pytest.mark.parametrize("steps", [5, 50, None])
def test_the_large_variance_is_exact_for_standard_normal_data_with_few_steps(steps: int | None) -> None:
    # the difference is the noise of the last step, from t = 1
    _, variance = compute_moments(Ancestral(FixedLarge(), steps), gaussian_denoiser(LINEAR, 0.0, 1.0))
    assert variance == pytest.approx(1 - 1e-4, rel=1e-10)


@pytest.mark.parametrize("steps", [5, 50])
def test_the_small_variance_is_too_small_for_standard_normal_data_with_few_steps(steps: int) -> None:
    _, variance = compute_moments(Ancestral(FixedSmall(), steps), gaussian_denoiser(LINEAR, 0.0, 1.0))
    assert variance < 0.95
