"""Clipping of predicted images: quantile thresholding against its formula and diffusers, and where it is refused."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.known_data import randn
from helpers.sampler_checks import LINEAR, network
from helpers.tiny import tiny_model

from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.diffusion import (
    X0,
    ClassifierFree,
    Denoiser,
    Epsilon,
    NoClipping,
    Parameterization,
    QuantileThreshold,
    Velocity,
)
from lightning_ddpm.models.generate import generate
from lightning_ddpm.utils.errors import UserError


def test_thresholding_equals_diffusers() -> None:
    x_0 = randn(3, 1, 3, 67) * torch.tensor([0.2, 1.0, 4.0])[:, None, None, None]
    settings = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1e9}
    theirs = DDIMScheduler(thresholding=True, **settings)._threshold_sample(x_0)
    # 201 values: the quantile of torch.quantile, which interpolates, is the 200th value itself
    torch.testing.assert_close(QuantileThreshold(0.995)(x_0, 1.0), theirs, rtol=1e-6, atol=1e-6)


def test_thresholding_scales_an_image_by_its_own_quantile_and_keeps_one_inside_the_range() -> None:
    x_0 = randn(2, 2, 5, 5) * torch.tensor([0.1, 5.0])[:, None, None, None]
    out = QuantileThreshold(0.9)(x_0, 0.5)
    assert torch.equal(out[0], x_0[0])
    s = sorted(x_0[1].abs().flatten().tolist())[math.ceil(0.9 * 50) - 1]
    torch.testing.assert_close(out[1], x_0[1].clamp(-s, s) * 0.5 / s)
    assert out.abs().max() <= 0.5
    assert (out[1].abs() == out[1].abs().max()).sum() == 6, "a tenth of the values, and s itself"


@pytest.mark.parametrize("quantile", [0.0, 1.1, math.nan])
def test_a_quantile_that_is_no_share_is_refused(quantile: float) -> None:
    with pytest.raises(UserError, match="share of an image's values"):
        QuantileThreshold(quantile)


def test_denoisers_derived_from_one_keep_its_clipping_and_give_x_t() -> None:
    denoise = Denoiser(network, LINEAR, clipping=QuantileThreshold(0.5))
    x_t = 2 * randn(2, 3, 4, 4, dtype=torch.float64)
    x_0, eps = denoise(x_t, 300)
    assert torch.equal(x_0, QuantileThreshold(0.5)(denoise.without_clipping()(x_t, 300).x_0, 1.0))
    torch.testing.assert_close(LINEAR.signal[300] * x_0 + LINEAR.noise[300] * eps, x_t, rtol=0, atol=1e-12)
    assert torch.equal(denoise.with_network(network)(x_t, 300).x_0, x_0)

    def with_class(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return network(x, t)

    guided = ClassifierFree(2.0)(Denoiser(with_class, LINEAR, clipping=QuantileThreshold(0.5)), torch.tensor([0, 1]))
    torch.testing.assert_close(guided(x_t, 300).x_0, x_0, rtol=0, atol=1e-12)


def test_a_model_samples_with_its_clipping_and_refuses_one_without_bounds() -> None:
    plain, thresholded = (generate(tiny_model(clipping=each), 4) for each in (None, QuantileThreshold(0.5)))
    assert not torch.equal(plain, thresholded)
    with pytest.raises(UserError, match="needs bounded values"):
        tiny_model(values=ValueRange("float32", -1.0, 1.0, bounded=False), clipping=QuantileThreshold())


@pytest.mark.parametrize("parameterization", [Epsilon(), X0(), Velocity()], ids=repr)
def test_no_clipping_is_a_denoiser_without_bounds_and_the_image_alone_is_clamped(
    parameterization: Parameterization,
) -> None:
    x_t = 8 * randn(2, 3, 4, 4, dtype=torch.float64)
    found, free = (
        Denoiser(network, LINEAR, clip, parameterization, clipping=NoClipping())(x_t, 100) for clip in (1.0, None)
    )
    assert found.x_0.abs().max() > 1
    assert torch.equal(found.x_0, free.x_0)
    assert torch.equal(found.eps, free.eps)
    model = tiny_model(clipping=NoClipping()).eval()
    x = model.sampler.sample(model.denoiser, randn(4, 1, 8, 8))
    assert torch.equal(x, model.sampler.sample(model.denoiser.without_clipping(), randn(4, 1, 8, 8)))
    assert x.abs().max() > 1
    assert generate(model, 4).dtype == torch.uint8
    assert str(NoClipping()) == "NoClipping"
