"""EDM's preconditioning against the formulas of Karras et al. 2022, table 1, and its loss weight."""

import pytest
import torch
from helpers.known_data import randn
from torch import Tensor

from lightning_ddpm.diffusion import EDM, Denoiser, Simple, VarianceExploding, Velocity, q_sample
from lightning_ddpm.utils.errors import UserError

PATH = VarianceExploding()


def network(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.sin(2 * x + c_noise.view(-1, 1, 1, 1)) + x.flip(-1) / 2


def test_the_denoiser_and_the_loss_are_those_of_the_paper() -> None:
    sigma_data, t = 0.6, torch.tensor([1.0, 200.5, 600.0, 1000.0], dtype=torch.float64)
    x_0, eps = randn(2, 4, 3, 2, 2, dtype=torch.float64)
    sigma = (PATH.noise_at(t) / PATH.signal_at(t)).view(-1, 1, 1, 1)
    assert sigma[[0, -1]].flatten().tolist() == pytest.approx([0.002, 80])
    x = x_0 + sigma * eps
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
    d = c_skip * x + c_out * network(c_in * x, sigma.log().flatten() / 4)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2

    denoise = Denoiser(network, PATH, None, EDM(sigma_data))
    denoised = denoise(q_sample(PATH, x_0, t, eps), t)
    torch.testing.assert_close(denoised.x_0, d, rtol=0, atol=1e-10)
    torch.testing.assert_close(denoised.eps, (x - d) / sigma, rtol=0, atol=1e-9)
    losses = Simple().losses(denoise, x_0, t, eps)
    torch.testing.assert_close(losses, (weight * (d - x_0) ** 2).flatten(1).mean(1).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(EDM(sigma_data).x_0_factor(PATH, t), weight.flatten())


def test_whole_timesteps_and_real_ones_give_the_network_the_same_noise_level() -> None:
    x = randn(3, 1, 2, 2)
    for t in (1, 500, 1000):
        (first, level), (second, other) = (
            EDM().network_input(PATH, x, each) for each in (t, torch.tensor([float(t)] * 3))
        )
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(level, other)
        assert level.dtype == other.dtype == torch.float32


def test_with_unit_variance_the_output_is_minus_v() -> None:
    x_0, eps = randn(2, 5, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([1, 10, 300, 900, 1000])
    torch.testing.assert_close(EDM(1.0).target(PATH, x_0, eps, t), -Velocity().target(PATH, x_0, eps, t))
    assert repr(EDM(1.0)) == "EDM(sigma_data=1.0)"
    with pytest.raises(UserError, match="sigma_data must be above 0"):
        EDM(0.0)
