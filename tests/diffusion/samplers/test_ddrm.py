"""DDRM: degradations by their singular value decomposition, and the observation is kept."""

import math

import pytest
import torch
from helpers.known_data import Mixture
from helpers.sampler_checks import LINEAR, SeededNoise, randn64
from torch import Tensor

from lightning_ddpm.diffusion import (
    DDRM,
    Cosine,
    Degradation,
    Denoiser,
    Downsample,
    Grayscale,
    Identity,
)
from lightning_ddpm.utils.errors import UserError

DEGRADATIONS = [Identity(), Downsample(2), Downsample(4), Grayscale()]


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=repr)
def test_a_degradation_is_consistent_with_its_singular_value_decomposition(degradation: Degradation) -> None:
    x, other_x = randn64(5, 3, 8, 8, seed=1), randn64(5, 3, 8, 8, seed=2)
    z, y = degradation.to_spectral(x), degradation(x)
    torch.testing.assert_close(degradation.from_spectral(z), x)
    torch.testing.assert_close((z * degradation.to_spectral(other_x)).sum(), (x * other_x).sum())
    values, observed = degradation.observe(y, z)
    torch.testing.assert_close(observed, torch.where(values > 0, z, 0.0))
    # U is orthogonal, so y has the norm of its coordinates
    torch.testing.assert_close((values * z).square().sum(), y.square().sum())
    assert (values > 0).sum() == y.numel()


def test_degradations_by_hand() -> None:
    x = randn64(2, 3, 4, 4)
    assert torch.equal(Identity()(x), x)
    torch.testing.assert_close(Downsample(2)(x)[0, 1, 1, 0], x[0, 1, 2:4, 0:2].mean())
    torch.testing.assert_close(Grayscale()(x), x.mean(1, keepdim=True))


def arbitrary_denoiser(schedule: Cosine) -> Denoiser:
    """Return any denoiser: a noiseless observation is kept whatever the network predicts."""
    return Denoiser(lambda x, t: torch.tanh(3 * x), schedule)


@pytest.mark.parametrize("steps", [1, 7, None])
def test_ddrm_with_the_identity_without_noise_returns_the_input(steps) -> None:
    x = randn64(4, 3, 8, 8).clamp(-1, 1)
    restored = DDRM(Identity(), x, steps=steps).sample(
        arbitrary_denoiser(Cosine(50)), randn64(4, 3, 8, 8, seed=5), SeededNoise()
    )
    assert torch.equal(restored, x)


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=repr)
def test_ddrm_keeps_a_noiseless_observation(degradation) -> None:
    y = degradation(randn64(4, 3, 8, 8).clamp(-1, 1))
    restored = DDRM(degradation, y).sample(arbitrary_denoiser(Cosine(50)), randn64(4, 3, 8, 8, seed=5), SeededNoise())
    torch.testing.assert_close(degradation(restored), y)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_ddrm_removes_noise_almost_optimally(sigma) -> None:
    """The optimal estimate of independent Gaussian pixels is known; a sample has twice its mean squared error."""
    variance = 0.09
    data = Mixture([1.0], [[0.3, -0.2]], [[[variance, 0.0], [0.0, variance]]])
    x = torch.tensor([0.3, -0.2]) + math.sqrt(variance) * randn64(4000, 1, 1, 2)
    y = x + sigma * randn64(4000, 1, 1, 2, seed=3)
    restored = DDRM(Identity(), y, sigma, steps=100).sample(
        data.denoiser(LINEAR), randn64(4000, 1, 1, 2, seed=4), SeededNoise()
    )
    optimum = 1 / (1 / variance + 1 / sigma**2)
    error = float((restored - x).square().mean())
    assert 0.95 * optimum < error < 2.1 * optimum


def test_an_observation_noisier_than_x_T_is_refused() -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(UserError, match="sigma=1e\\+06 is larger than that of the schedule's x_T; lower it"):
        DDRM(Identity(), x, 1e6).sample(arbitrary_denoiser(LINEAR), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Downsample(1), "factor must be at least 2, got 1"),
        (lambda: Downsample(3)(torch.zeros(1, 1, 8, 8)), "8x8 cannot be divided into blocks of 3x3"),
        (lambda: Grayscale()(torch.zeros(1, 1, 8, 8)), "already grayscale"),
        (lambda: DDRM(Identity(), torch.zeros(1), -1.0), "at least 0 and finite, got sigma=-1"),
        (lambda: DDRM(Identity(), torch.zeros(1), eta=1.5), r"eta must lie in \\[0, 1\\]"),
    ],
)
def test_invalid_inverse_problems_are_refused(call, message) -> None:
    with pytest.raises(UserError, match=message.replace("\\\\", "\\")):
        call()


def test_ddrm_calls_the_network_nfe_times() -> None:
    calls = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append(int(t[0]))
        return torch.zeros_like(x)

    sampler = DDRM(Downsample(2), torch.zeros(1, 1, 4, 4), steps=7)
    sampler.sample(Denoiser(network, LINEAR), randn64(1, 1, 8, 8))
    assert len(calls) == sampler.nfe(1000) == 7
