"""Guidance on data whose conditional distributions are known."""

import pytest
import torch
from helpers.conditional_data import CONDITIONAL, PARTS, SCHEDULE, conditional_network
from helpers.known_data import TWO, randn
from torch import Tensor

from lightning_ddpm.diffusion import (
    X0,
    ClassifierFree,
    Cosine,
    Denoiser,
    FlowVelocity,
    GaussianPath,
    Heun,
    RectifiedFlow,
    Velocity,
    ZeroTerminalSNR,
    guide_by_classifier,
    trailing_spacing,
)
from lightning_ddpm.utils.errors import UserError


def log_probability(y: int):
    """Return log p(y | x_t) of the Bayes-optimal classifier of noisy points."""

    def compute(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = SCHEDULE.signal[t[0]], SCHEDULE.noise[t[0]]
        joint = TWO.weights[y].log() + PARTS[y].log_density(x_t, signal, noise)
        return joint - TWO.log_density(x_t, signal, noise)

    return compute


def constant(w: float):
    return lambda t: w


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("t", [1, 200, 500, 1000])
def test_classifier_guidance_of_scale_1_gives_the_conditional_noise(t: int, y: int) -> None:
    steps, x_0 = torch.full((64,), t), randn(64, 1, 1, 2, dtype=torch.float64)
    x_t = SCHEDULE.signal[t] * 0.5 * x_0 + SCHEDULE.noise[t] * randn(64, 1, 1, 2, seed=1, dtype=torch.float64)
    guided = guide_by_classifier(TWO.denoiser(SCHEDULE), log_probability(y), constant(1.0))
    torch.testing.assert_close(guided(x_t, steps).eps, PARTS[y].eps(SCHEDULE, x_t, steps), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("kind", ["classifier", "classifier-free"])
def test_any_sampler_of_a_guided_denoiser_samples_the_class(kind: str, y: int) -> None:
    if kind == "classifier-free":
        guided = ClassifierFree(1.0)(CONDITIONAL, torch.full((4000,), y))
    else:
        guided = guide_by_classifier(TWO.denoiser(SCHEDULE), log_probability(y), constant(1.0))
    x = Heun(200).sample(guided, randn(4000, 1, 1, 2, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(x.mean(0), PARTS[y].mean(), rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), PARTS[y].covariance(), rtol=0, atol=0.005)


@pytest.mark.parametrize("path", [RectifiedFlow(), ZeroTerminalSNR(Cosine(1000))], ids=repr)
def test_a_classifier_guides_where_the_path_ends_in_noise(path: GaussianPath) -> None:
    """There eps does not determine x_0, and the class is unknown at T."""

    def on_path(x_t: Tensor, t: Tensor) -> Tensor:
        assert (t < path.T).all(), "x_T does not depend on the class"
        signal, noise = path.signal_at(t[0]), path.noise_at(t[0])
        joint = TWO.weights[0].log() + PARTS[0].log_density(x_t, signal, noise)
        return joint - TWO.log_density(x_t, signal, noise)

    for parameterization in (Velocity(), X0(), FlowVelocity()):
        guided = guide_by_classifier(TWO.denoiser_for(path, parameterization), on_path, constant(1.0))
        x = randn(8, 1, 1, 2, dtype=torch.float64)
        for t in (1, 500, path.T - 1):
            expected = PARTS[0].denoiser_for(path, parameterization)(x, t)
            torch.testing.assert_close(guided(x, t).x_0, expected.x_0, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(guided(x, t).eps, expected.eps, rtol=1e-6, atol=1e-7)
        at_T, times = guided(x, torch.full((8,), path.T)), torch.full((8,), path.T)
        torch.testing.assert_close(at_T.x_0, TWO.x_0(path, x, times), rtol=0, atol=1e-9)
        samples = Heun(60, spacing=trailing_spacing).sample(guided, randn(1000, 1, 1, 2, dtype=torch.float64))
        torch.testing.assert_close(samples.flatten(1).mean(0), PARTS[0].mean(), rtol=0, atol=0.05)


def test_guidance_of_scale_0_is_the_unconditional_network() -> None:
    x_t, t = randn(8, 1, 1, 2, dtype=torch.float64), torch.full((8,), 300)
    unconditional = TWO.eps(SCHEDULE, x_t, t)
    by_classifier = guide_by_classifier(TWO.denoiser(SCHEDULE), log_probability(0), constant(0.0))
    assert torch.equal(by_classifier(x_t, t).eps, unconditional)
    assert torch.equal(ClassifierFree(0.0)(CONDITIONAL, torch.zeros(8, dtype=torch.long))(x_t, t).eps, unconditional)


def test_classifier_free_guidance_interpolates_and_extrapolates() -> None:
    x_t, t, label = randn(8, 1, 1, 2, dtype=torch.float64), torch.full((8,), 300), torch.ones(8, dtype=torch.long)
    unconditional, conditional = TWO.eps(SCHEDULE, x_t, t), PARTS[1].eps(SCHEDULE, x_t, t)
    assert torch.equal(ClassifierFree(1.0)(CONDITIONAL, label)(x_t, t).eps, conditional)
    for w in (0.5, 3.0):
        guided = ClassifierFree(w)(CONDITIONAL, label)(x_t, t).eps
        torch.testing.assert_close(guided, w * conditional + (1 - w) * unconditional)


def test_a_step_calls_the_network_once_on_twice_the_batch_inside_the_interval_only() -> None:
    calls: list[int] = []

    def counting_network(x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        calls.append(len(x_t))
        return conditional_network(x_t, t, label)

    model, label = Denoiser(counting_network, SCHEDULE, clip=None), torch.ones(8, dtype=torch.long)
    x_t, conditional = randn(8, 1, 1, 2, dtype=torch.float64), CONDITIONAL.conditioned_on(label)
    for scale in (0.0, 3.0):
        guidance = ClassifierFree(scale, (200, 400))
        guided = guidance(model, label)
        for t, inside in ((199, False), (200, True), (400, True), (401, False)):
            calls.clear()
            outside = torch.equal(guided(x_t, t).eps, conditional(x_t, t).eps)
            assert (calls, outside) == (([16], False) if inside else ([8], True))
        assert guidance.nfe == 2
    for scale in (0.0, 1.0):
        calls.clear()
        ClassifierFree(scale)(model, label)(x_t, 300)
        assert (calls, ClassifierFree(scale).nfe) == ([8], 1)
    assert ClassifierFree(1.0, (200, 400)).nfe == 1


@pytest.mark.parametrize("parameterization", [X0(), Velocity()], ids=repr)
def test_guidance_does_not_depend_on_the_parameterization(parameterization) -> None:
    """Both kinds, with a network that does not predict the noise and that learns the variance."""

    def network(x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        noise = conditional_network(x_t, t, label)
        x_0 = (x_t - SCHEDULE.noise[t[0]] * noise) / SCHEDULE.signal[t[0]]
        output = parameterization.target(SCHEDULE, x_0, noise, t)
        return torch.cat([output, torch.full_like(output, 0.2)], dim=1)

    x_t, t = randn(8, 1, 1, 2, dtype=torch.float64), torch.full((8,), 300)
    denoise = Denoiser(network, SCHEDULE, clip=None, parameterization=parameterization)
    by_classifier = guide_by_classifier(denoise, log_probability(1), constant(2.0))(x_t, t)
    classifier_free = ClassifierFree(2.0)(denoise, torch.ones(8, dtype=torch.long))(x_t, t)
    for denoised in (by_classifier, classifier_free):
        torch.testing.assert_close(denoised.eps, 2 * PARTS[1].eps(SCHEDULE, x_t, t) - TWO.eps(SCHEDULE, x_t, t))
        torch.testing.assert_close(denoised.nu, torch.full_like(x_t, 0.6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.5, None), "at least 0 and finite, got -0.5"),
        ((float("nan"), None), "at least 0 and finite, got nan"),
        ((2.0, (10, 5)), "got 10 to 5"),
        ((2.0, (0, 5)), "got 0 to 5"),
    ],
)
def test_an_invalid_scale_or_interval_is_refused(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        ClassifierFree(*arguments)
