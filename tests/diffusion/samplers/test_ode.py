"""The adaptive solver of the probability-flow ODE and the likelihood of its flow, against known densities."""

import pytest
import torch
from helpers.known_data import ONE, TWO, Mixture, randn
from helpers.sampler_checks import FINE, space_by_angle
from helpers.tiny import tiny_model
from torch import Tensor

from lightning_ddpm.diffusion import AdaptiveODE, Cosine, Denoiser, Heun
from lightning_ddpm.diffusion.samplers.ode import (
    exact_divergence,
    flow_log_likelihood,
    hutchinson_divergence,
)
from lightning_ddpm.utils.errors import UserError


def test_the_adaptive_solver_meets_its_tolerance() -> None:
    denoise, x_T = TWO.denoiser(FINE), randn(64, 1, 1, 2, dtype=torch.float64)
    truth = Heun(1600, spacing=space_by_angle).sample(denoise, x_T)
    errors = [float((AdaptiveODE(each).sample(denoise, x_T) - truth).abs().mean()) for each in (1e-2, 1e-4, 1e-6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 1e-3
    assert errors[2] < 1e-4


def test_other_images_of_the_batch_change_an_adaptive_solution_by_less_than_half_a_level() -> None:
    denoise, x_T = ONE.denoiser(FINE), randn(16, 1, 1, 2, dtype=torch.float64)
    together = AdaptiveODE(1e-5).sample(denoise, x_T)
    alone = torch.cat([AdaptiveODE(1e-5).sample(denoise, each[None]) for each in x_T])
    torch.testing.assert_close(together, alone, rtol=0, atol=1 / 255)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0])
def test_an_invalid_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(UserError, match="tolerance must lie between 0 and 1"):
        AdaptiveODE(tolerance)


def test_predictions_that_are_not_finite_give_nan_as_those_of_other_samplers() -> None:
    for value in (float("nan"), float("inf")):
        denoise = Denoiser(lambda x_t, t, value=value: torch.full_like(x_t, value), Cosine(20), clip=None)
        x = randn(2, 1, 2, 2, dtype=torch.float64)
        assert AdaptiveODE().sample(denoise, x).isnan().all()
        assert Heun().sample(denoise, x).isnan().all()
        assert flow_log_likelihood(denoise, x, hutchinson_divergence(x.sign())).isnan().all()


def test_predictions_that_are_not_finite_below_some_time_give_nan() -> None:
    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None, None, None] < 10, torch.nan, ONE.eps(FINE, x_t, t))

    x_T = randn(4, 1, 1, 2, dtype=torch.float64)
    assert AdaptiveODE().sample(Denoiser(network, FINE, clip=None), x_T).isnan().all()


def test_an_assertion_of_the_network_is_not_taken_for_the_solvers() -> None:
    def network(x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        AdaptiveODE().sample(Denoiser(network, Cosine(20)), randn(1, 1, 2, 2))


@pytest.mark.parametrize("data", [ONE, TWO], ids=["one Gaussian", "two Gaussians"])
def test_the_flow_likelihood_is_the_density_of_the_data(data: Mixture) -> None:
    x = torch.stack(
        torch.meshgrid(*[torch.linspace(-1, 1, 9, dtype=torch.float64)] * 2, indexing="ij"), dim=-1
    ).reshape(-1, 1, 1, 2)
    is_likely = data.log_density(x) > -4
    log_likelihood = flow_log_likelihood(data.denoiser(Cosine(20_000)), x[is_likely], exact_divergence, tolerance=1e-6)
    assert is_likely.sum() > 15
    # In nats per dimension; x is taken to be x_1, whose noise blurs the density slightly.
    torch.testing.assert_close(log_likelihood / 2, data.log_density(x[is_likely]) / 2, rtol=0, atol=1e-3)


def test_hutchinsons_estimate_is_unbiased() -> None:
    def field(x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        return torch.stack([first**2 * second, torch.sin(first) + second**3], dim=1).reshape(x.shape)

    x = randn(1, 1, 1, 2, dtype=torch.float64)
    first, second = x.flatten().tolist()
    v, divergence = exact_divergence(field, x)
    assert float(divergence) == pytest.approx(2 * first * second + 3 * second**2)
    torch.testing.assert_close(v, field(x))
    probes = [torch.tensor(signs, dtype=x.dtype).reshape(x.shape) for signs in ([1, 1], [1, -1])]
    estimates = [hutchinson_divergence(probe)(field, x) for probe in probes]
    assert float(sum(each for _, each in estimates)) / 2 == pytest.approx(float(divergence))
    assert float(estimates[0][1]) != pytest.approx(float(divergence))
    torch.testing.assert_close(estimates[0][0], field(x))


def test_the_flow_likelihood_works_in_inference_mode() -> None:
    model = tiny_model().eval()
    images = torch.zeros(2, 1, 8, 8)
    probe = torch.ones_like(images)
    denoise = Denoiser(model.network, model.schedule, clip=None)
    with torch.inference_mode():
        with_inference_mode = flow_log_likelihood(denoise, images, hutchinson_divergence(probe), tolerance=1e-2)
    assert torch.equal(
        with_inference_mode, flow_log_likelihood(denoise, images, hutchinson_divergence(probe), tolerance=1e-2).detach()
    )
    assert with_inference_mode.shape == (2,)
