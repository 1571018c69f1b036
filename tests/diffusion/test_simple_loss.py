"""The training objective."""

import pytest
import torch

from lightning_ddpm.diffusion import Linear, q_sample, simple_loss


def test_simple_loss_is_the_mean_square_over_the_pixels_of_each_image() -> None:
    eps, eps_hat = torch.randn(2, 5, 3, 4, 4).unbind(0)
    expected = [((eps_hat[i] - eps[i]) ** 2).sum().item() / (3 * 4 * 4) for i in range(5)]
    assert simple_loss(eps, eps_hat).tolist() == pytest.approx(expected, rel=1e-6)


def test_simple_loss_by_hand() -> None:
    eps = torch.tensor([[[[0.0, 0.0]]], [[[1.0, -1.0]]]])
    eps_hat = torch.tensor([[[[3.0, 1.0]]], [[[1.0, -1.0]]]])
    assert simple_loss(eps, eps_hat).tolist() == [5.0, 0.0]


def test_its_gradient_points_from_the_prediction_to_the_noise() -> None:
    eps, eps_hat = torch.randn(2, 2, 1, 3, 3).unbind(0)
    eps_hat = eps_hat.clone().requires_grad_()
    simple_loss(eps, eps_hat).sum().backward()
    torch.testing.assert_close(eps_hat.grad, 2 * (eps_hat.detach() - eps) / 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_float32_whatever_the_network_runs_in(dtype: torch.dtype) -> None:
    eps = torch.full((1, 1, 64, 64), 300.0)
    loss = simple_loss(eps, torch.zeros(1, 1, 64, 64, dtype=dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000  # more than float16 holds


def test_the_expected_noise_minimises_it_and_the_minimum_is_its_variance() -> None:
    # x_0 ~ N(0, 1) => x_t ~ N(0, 1) and E[eps | x_t] = noise_t x_t, which leaves signal_t^2 of eps' variance
    schedule, t, n = Linear(100), 60, 200_000
    x_0, eps = torch.randn(2, n, 1, 1, 1, generator=torch.Generator().manual_seed(0)).unbind(0)
    x_t = q_sample(schedule, x_0, t, eps)
    loss = {factor: simple_loss(eps, factor * schedule.noise[t].float() * x_t).mean() for factor in (0.9, 1.0, 1.1)}
    assert loss[1.0].item() == pytest.approx(schedule.alpha_bar[t].item(), rel=4 * (2 / n) ** 0.5)
    assert loss[1.0] < min(loss[0.9], loss[1.1])
