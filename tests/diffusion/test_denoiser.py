"""The denoiser: what it predicts, and clipping."""

import pytest
import torch
from helpers.known_data import randn
from helpers.sampler_checks import LINEAR, network

from lightning_ddpm.diffusion import (
    Denoised,
    Denoiser,
)


@pytest.mark.parametrize("clip", [None, 1.0, 0.25])
@pytest.mark.parametrize("t", [1, 2, 300, 1000])
def test_predicted_x_0_and_eps_give_x_t(clip: float | None, t: int) -> None:
    x_t = 2 * randn(2, 3, 4, 4, dtype=torch.float64)
    x_0, eps = Denoiser(network, LINEAR, clip)(x_t, t)
    torch.testing.assert_close(LINEAR.signal[t] * x_0 + LINEAR.noise[t] * eps, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_clipping_changes_only_values_outside_the_range(clip: float) -> None:
    x_t = 2 * randn(2, 3, 4, 4, dtype=torch.float64)
    free, clipped = Denoiser(network, LINEAR, None)(x_t, 300), Denoiser(network, LINEAR, clip)(x_t, 300)
    outside = free.x_0.abs() > clip
    assert outside.any()
    assert not outside.all()
    assert torch.equal(clipped.x_0[outside], clip * free.x_0[outside].sign())
    assert torch.equal(clipped.x_0[~outside], free.x_0[~outside])
    torch.testing.assert_close(clipped.eps[~outside], free.eps[~outside], rtol=0, atol=1e-12)
    assert ((clipped.eps - free.eps)[outside].abs() > 1e-6).all()


def test_without_clipping_eps_is_the_networks_output() -> None:
    x_t = randn(2, 3, 4, 4)
    denoised = Denoiser(network, LINEAR, None)(x_t, 300)
    assert isinstance(denoised, Denoised)
    assert torch.equal(denoised.eps, network(x_t, torch.tensor([300, 300])))
