"""SDEdit: its steps, and the distribution of its variations."""

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
    PredictorCorrector,
    RectifiedFlow,
    SDEdit,
)
from lightning_ddpm.utils.errors import UserError


def test_sdedit_makes_the_share_of_the_steps_given_by_its_strength() -> None:
    timesteps: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        timesteps.append(int(t[0]))
        return torch.zeros_like(x)

    denoise, image = Denoiser(network, LINEAR), randn64(1, 2, 2).clamp(-1, 1)
    for strength, restored in ((0.0, 0), (0.3, 3), (1.0, 10)):
        timesteps.clear()
        variation = SDEdit(DDIM(10), image, strength)
        x = variation.sample(denoise, randn64(3, 1, 2, 2))
        assert len(timesteps) == restored == variation.nfe(1000)
        assert (x == image).all() == (strength == 0)
    assert timesteps[0] == 1000
    corrected = SDEdit(PredictorCorrector(Ancestral(FixedSmall(), 10)), image, 0.5)
    timesteps.clear()
    corrected.sample(denoise, randn64(3, 1, 2, 2))
    assert len(timesteps) == corrected.nfe(1000)


@pytest.mark.parametrize("strength", [0.1, 0.3, 1.0])
def test_sdedit_of_a_gaussian_has_the_correlation_of_its_strength(strength) -> None:
    """The correlation of image and sample of q(x_0 | x_t) is the signal's share of x_t's variance."""
    data = Mixture([1.0], [[0.3, -0.2]], [[[0.25, 0.0], [0.0, 0.09]]])
    x = torch.tensor([0.3, -0.2]) + torch.tensor([0.5, 0.3]) * randn64(4000, 1, 1, 2)
    variation = SDEdit(Ancestral(FixedLarge()), x, strength)
    restored = variation.sample(data.denoiser(LINEAR), randn64(4000, 1, 1, 2, seed=9), SeededNoise())
    assert restored.flatten(1).mean(0).tolist() == pytest.approx([0.3, -0.2], abs=0.03)
    assert restored.flatten(1).var(0).tolist() == pytest.approx([0.25, 0.09], rel=0.1)
    alpha_bar = float(LINEAR.alpha_bar[round(1000 * strength)])
    for pixel, variance in enumerate((0.25, 0.09)):
        correlation = torch.corrcoef(torch.stack([each.flatten(1)[:, pixel] for each in (x, restored)]))[0, 1]
        expected = alpha_bar * variance / (alpha_bar * variance + 1 - alpha_bar)
        assert float(correlation) == pytest.approx(expected, abs=0.04)


def test_an_invalid_strength_is_refused() -> None:
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], got 1.5"):
        SDEdit(DDIM(10), torch.zeros(1, 2, 2), 1.5)


def test_a_strength_of_less_than_half_a_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"strength 0.01 of 20 steps is no step; raise it to at least 0.05"):
        SDEdit(DDIM(20), torch.zeros(1, 2, 2), 0.01).nfe(1000)


def test_what_the_sampler_of_the_steps_refuses_is_refused() -> None:
    denoise = Denoiser(lambda x, t: x, RectifiedFlow(100), None, FlowVelocity())
    SDEdit(DDIM(4), torch.zeros(1, 2, 2), 0.5).check_denoiser(denoise)
    with pytest.raises(UserError, match="MeanFlowSampler needs a network that is given the length of the step"):
        SDEdit(MeanFlowSampler(4), torch.zeros(1, 2, 2), 0.5).check_denoiser(denoise)
    with pytest.raises(UserError, match="is no step; raise it to at least"):
        SDEdit(DDIM(4), torch.zeros(1, 2, 2), 0.01).check_denoiser(denoise)
