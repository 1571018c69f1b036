"""Guidance and inpainting on data whose conditional distributions are known."""

import pytest
import torch
from helpers.conditional_data import CONDITIONAL, PARTS, SCHEDULE, told
from helpers.known_data import TWO, randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    ClassifierFree,
    Denoiser,
    Heun,
    Velocity,
    guide_by_classifier,
)
from lightning_ddpm.utils.errors import UserError


def log_probability(y: int):
    """log p(y | x_t), as the best classifier of noisy points would say."""

    def of(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = SCHEDULE.signal[t[0]], SCHEDULE.noise[t[0]]
        joint = TWO.weights[y].log() + PARTS[y].log_density(x_t, signal, noise)
        return joint - TWO.log_density(x_t, signal, noise)

    return of


def always(w: float):
    return lambda t: torch.full(t.shape, w)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("t", [1, 200, 500, 1000])
def test_a_classifiers_guidance_of_weight_1_gives_the_conditional_noise(t: int, y: int) -> None:
    steps, x_0 = torch.full((64,), t), randn(64, 1, 1, 2, dtype=torch.float64)
    x_t = SCHEDULE.signal[t] * 0.5 * x_0 + SCHEDULE.noise[t] * randn(64, 1, 1, 2, seed=1, dtype=torch.float64)
    guided = guide_by_classifier(TWO.denoiser(SCHEDULE), log_probability(y), always(1.0))
    torch.testing.assert_close(guided(x_t, steps).eps, PARTS[y].eps(SCHEDULE, x_t, steps), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("kind", ["by a classifier", "without one"])
def test_a_sampler_that_does_not_know_of_guidance_draws_the_class(kind: str, y: int) -> None:
    if kind == "without one":
        guided = ClassifierFree(1.0)(CONDITIONAL, torch.full((4000,), y))
    else:
        guided = guide_by_classifier(TWO.denoiser(SCHEDULE), log_probability(y), always(1.0))
    x = Heun(200).sample(guided, randn(4000, 1, 1, 2, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(x.mean(0), PARTS[y].mean(), rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), PARTS[y].covariance(), rtol=0, atol=0.005)


def test_guidance_without_weight_is_the_network_itself() -> None:
    x_t, t = randn(8, 1, 1, 2, dtype=torch.float64), torch.full((8,), 300)
    free = TWO.eps(SCHEDULE, x_t, t)
    by_classifier = guide_by_classifier(TWO.denoiser(SCHEDULE), log_probability(0), always(0.0))
    assert torch.equal(by_classifier(x_t, t).eps, free)
    assert torch.equal(ClassifierFree(0.0)(CONDITIONAL, torch.zeros(8, dtype=torch.long))(x_t, t).eps, free)


def test_classifier_free_guidance_goes_from_unconditional_to_conditional_and_on() -> None:
    x_t, t, label = randn(8, 1, 1, 2, dtype=torch.float64), torch.full((8,), 300), torch.ones(8, dtype=torch.long)
    free, of_class = TWO.eps(SCHEDULE, x_t, t), PARTS[1].eps(SCHEDULE, x_t, t)
    assert torch.equal(ClassifierFree(1.0)(CONDITIONAL, label)(x_t, t).eps, of_class)
    for w in (0.5, 3.0):
        guided = ClassifierFree(w)(CONDITIONAL, label)(x_t, t).eps
        torch.testing.assert_close(guided, w * of_class + (1 - w) * free)


def test_a_step_is_one_call_of_the_network_twice_as_large_and_only_inside_the_interval() -> None:
    calls: list[int] = []

    def counted(x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        calls.append(len(x_t))
        return told(x_t, t, label)

    model, label = Denoiser(counted, SCHEDULE, clip=None), torch.ones(8, dtype=torch.long)
    x_t, of_class = randn(8, 1, 1, 2, dtype=torch.float64), CONDITIONAL.conditioned_on(label)
    guided = ClassifierFree(3.0, (200, 400))(model, label)
    for t, inside in ((199, False), (200, True), (400, True), (401, False)):
        calls.clear()
        outside = torch.equal(guided(x_t, t).eps, of_class(x_t, t).eps)
        assert (calls, outside) == (([16], False) if inside else ([8], True))


@pytest.mark.parametrize("prediction", [X0(), Velocity()], ids=repr)
def test_guidance_is_the_same_whatever_the_network_predicts(prediction) -> None:
    """Both kinds, of a network that predicts something else and learns its variance as well."""

    def network(x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        noise = told(x_t, t, label)
        x_0 = (x_t - SCHEDULE.noise[t[0]] * noise) / SCHEDULE.signal[t[0]]
        output = prediction.target(SCHEDULE, x_0, noise, t)
        return torch.cat([output, torch.full_like(output, 0.2)], dim=1)

    x_t, t = randn(8, 1, 1, 2, dtype=torch.float64), torch.full((8,), 300)
    inside = Denoiser(network, SCHEDULE, clip=None, parameterization=prediction)
    by_classifier = guide_by_classifier(inside, log_probability(1), always(2.0))(x_t, t)
    without = ClassifierFree(2.0)(inside, torch.ones(8, dtype=torch.long))(x_t, t)
    for denoised in (by_classifier, without):
        torch.testing.assert_close(denoised.eps, 2 * PARTS[1].eps(SCHEDULE, x_t, t) - TWO.eps(SCHEDULE, x_t, t))
        torch.testing.assert_close(denoised.nu, torch.full_like(x_t, 0.6))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((-0.5, None), "at least 0 and finite, got -0.5"),
        ((float("nan"), None), "at least 0 and finite, got nan"),
        ((2.0, (10, 5)), "got 10 to 5"),
        ((2.0, (0, 5)), "got 0 to 5"),
    ],
)
def test_a_scale_or_an_interval_that_is_none_is_refused(arguments, said) -> None:
    with pytest.raises(UserError, match=said):
        ClassifierFree(*arguments)
