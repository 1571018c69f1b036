"""The variance of the reverse steps, fixed and learned."""

import math

import pytest
import torch
from torch import Tensor

from lightning_ddpm.diffusion import (
    Ancestral,
    Cosine,
    Denoised,
    Denoiser,
    FixedLarge,
    FixedSmall,
    LearnedRange,
    Linear,
    NoiseSchedule,
)
from lightning_ddpm.diffusion.process import posterior_variance
from lightning_ddpm.diffusion.variance import posterior_log_variance
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError

LINEAR = Linear(1000)


def image(seed: int = 0, b: int = 2) -> Tensor:
    return torch.randn(b, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_nu(nu: Tensor) -> Denoised:
    return Denoised(torch.zeros_like(nu), torch.zeros_like(nu), nu)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Predict arbitrary noise and v in [-1, 1]."""
    v = torch.cos(5 * x_t + t.view(-1, 1, 1, 1))
    return torch.cat([torch.sin(3 * x_t.roll(1, -1) + t.view(-1, 1, 1, 1) / 100) + 0.8 * x_t, v], dim=1)


def recorded_noise(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


@pytest.mark.parametrize("schedule", [LINEAR, Cosine(50)], ids=["linear", "cosine"])
def test_the_learned_range_runs_from_the_small_to_the_large_variance(schedule: NoiseSchedule) -> None:
    zeros = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for s, t in [(1, 2), (20, 21), (3, 40)]:
        small, large = (each.variance(schedule, s, t).item() for each in (FixedSmall(), FixedLarge()))
        variances = [LearnedRange().variance(schedule, s, t, with_nu(zeros + nu)).item() for nu in (0, 0.5, 1)]
        assert variances == pytest.approx([small, (small * large) ** 0.5, large], rel=1e-12)


def test_log_variances_are_the_logs_and_the_decoder_uses_t_2() -> None:
    t = torch.arange(1, 1001)
    beta, small = LINEAR.beta[t], posterior_variance(LINEAR, t.clamp(min=2) - 1, t.clamp(min=2))
    assert posterior_variance(LINEAR, 0, 1) == 0
    assert small[0] == small[1]
    torch.testing.assert_close(posterior_log_variance(LINEAR, t), small.log())
    torch.testing.assert_close(FixedSmall().log_variance(LINEAR, t), small.log())
    torch.testing.assert_close(FixedLarge().log_variance(LINEAR, t)[1:], beta[1:].log())
    assert FixedLarge().log_variance(LINEAR, 1) == small[0].log()
    nu = torch.full((1000, 1, 1, 1), 0.3, dtype=torch.float64)
    learned = LearnedRange().log_variance(LINEAR, t, with_nu(nu)).flatten()
    torch.testing.assert_close(learned, 0.3 * beta.log() + 0.7 * small.log())
    assert learned[0].item() == pytest.approx(0.3 * math.log(1e-4) + 0.7 * small[1].log().item())


def test_a_network_that_does_not_predict_the_variance_is_refused() -> None:
    with pytest.raises(UserError, match=r"LearnedRange needs a network.*outputs: 2"):
        Ancestral(LearnedRange(), 5).sample(Denoiser(lambda x_t, t: x_t, LINEAR), image())
    with pytest.raises(UserError, match="at least 2 steps"):
        posterior_log_variance(Linear(1), 1)


def test_fixed_variances_ignore_the_networks_variance() -> None:
    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t)[:, :3]

    sampler = Ancestral(FixedSmall(), 5)
    both = [sampler.sample(Denoiser(each, LINEAR), image(), recorded_noise(1)) for each in (network, eps)]
    assert torch.equal(*both)


def test_the_unet_outputs_twice_the_channels_if_configured() -> None:
    settings = {"channels": 1, "size": 8, "width": 8, "multipliers": (1, 2), "attention": (), "groups": 4, "blocks": 1}
    one, two = UNet(**settings), UNet(**settings, outputs=2)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 1000])
    assert one(x, t).shape == (2, 1, 8, 8)
    assert two(x, t).shape == (2, 2, 8, 8)
    denoised = Denoiser(two, LINEAR)(x, 500)
    assert denoised.nu is not None
    assert denoised.nu.mean().item() == pytest.approx(0.5, abs=1e-3)  # geometric middle of the range, at the start
    Ancestral(LearnedRange(), 3).sample(Denoiser(two, LINEAR), x)
