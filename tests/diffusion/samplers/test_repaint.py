"""RePaint: known pixels are kept, and the others approach their conditional distribution."""

import math

import pytest
import torch
from helpers.known_data import Mixture
from helpers.sampler_checks import LINEAR, SeededNoise, randn64
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDIM,
    Ancestral,
    Denoiser,
    FixedLarge,
    FixedSmall,
    FlowVelocity,
    MeanFlowSampler,
    RectifiedFlow,
    RePaint,
)
from lightning_ddpm.utils.errors import UserError

KNOWN_IMAGE, FIRST_PIXEL = torch.tensor([[[0.7, 99.0]]]), torch.tensor([[[1.0, 0.0]]])


def sample_second_pixel(data: Mixture, n: int, inpainting: RePaint) -> Tensor:
    """Sample the second pixel given the first, which is known."""
    x = inpainting.sample(data.denoiser(LINEAR), randn64(n, 1, 1, 2), SeededNoise()).flatten(1)
    assert (x[:, 0] == KNOWN_IMAGE.flatten()[0].double()).all()
    return x[:, 1]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("sampler", [Ancestral(FixedSmall(), 200), DDIM(100)], ids=repr)
def test_known_pixels_are_exact_and_independent_pixels_keep_their_distribution(sampler, passes) -> None:
    data = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.0], [0.0, 0.09]]])
    inpainting = RePaint(sampler, KNOWN_IMAGE, FIRST_PIXEL, passes, 5)
    x = sample_second_pixel(data, 4000, inpainting)
    assert float(x.mean()) == pytest.approx(-0.2, abs=0.02)
    assert float(x.var()) == pytest.approx(0.09, abs=0.016)
    assert inpainting.nfe(1000) == passes * sampler.nfe(1000)


def test_more_passes_approach_the_conditional_distribution() -> None:
    """The two pixels of this data are nearly equal, so that one determines the other."""
    data, truth = Mixture([1.0], [[0.0, 0.0]], [[[0.25, 0.24], [0.24, 0.25]]]), 0.7 * 0.96
    samples = [
        sample_second_pixel(data, 1000, RePaint(Ancestral(FixedSmall(), 200), KNOWN_IMAGE, FIRST_PIXEL, n, 4))
        for n in (1, 3, 9)
    ]
    errors = [abs(float(x.mean()) - truth) for x in samples]
    assert 0.1 < errors[0] < truth  # it would be 0 if nothing were known
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert float(samples[2].std()) < 0.2  # 0.14 is exact; 0.5 if nothing were known


@pytest.mark.slow
def test_many_passes_reach_the_conditional_distribution() -> None:
    data = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.15], [0.15, 0.16]]])
    n, mean, variance = 1000, -0.2 + 0.6 * (0.7 - 0.3), 0.16 - 0.6 * 0.15
    x = sample_second_pixel(data, n, RePaint(Ancestral(FixedLarge()), KNOWN_IMAGE, FIRST_PIXEL, 40, 10))
    assert float(x.mean()) == pytest.approx(mean, abs=3 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, abs=3 * variance * math.sqrt(2 / n))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.full((1, 2, 2), 0.5)}, "1 where a pixel is known and 0 where it is not"),
        ({"mask": torch.ones(1, 3, 3)}, "the mask is 1x3x3 and the image 1x2x2"),
        ({"passes": 0}, "passes >= 1 and jump >= 1, got passes=0"),
        ({"jump": 0}, "got passes=10 and jump=0"),
    ],
)
def test_an_invalid_mask_or_number_of_passes_is_refused(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        RePaint(DDIM(10), torch.zeros(1, 2, 2), **{"mask": torch.ones(1, 2, 2)} | arguments)


def test_what_the_sampler_of_the_steps_refuses_is_refused() -> None:
    denoise, image = Denoiser(lambda x, t: x, RectifiedFlow(100), None, FlowVelocity()), torch.zeros(1, 2, 2)
    RePaint(DDIM(4), image, torch.ones_like(image)).check_denoiser(denoise)
    with pytest.raises(UserError, match="MeanFlowSampler needs a network that is given the length of the step"):
        RePaint(MeanFlowSampler(4), image, torch.ones_like(image)).check_denoiser(denoise)
