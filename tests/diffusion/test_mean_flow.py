"""MeanFlow: the identity and its sampler on data whose mean velocity is known, its gradient, and what is refused."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.known_data import ONE, TWO, randn
from helpers.tiny import TINY, quiet_trainer, tiny_model, tiny_network
from torch import Tensor, nn

from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import (
    DDIM,
    AdaptiveODE,
    ClassifierFree,
    Cosine,
    Denoiser,
    FlowVelocity,
    LogitNormal,
    MeanFlow,
    MeanFlowSampler,
    Objective,
    RectifiedFlow,
    UncertaintyWeighted,
    Velocity,
    q_sample,
    trailing_spacing,
)
from lightning_ddpm.models.image_generator import check_sampling
from lightning_ddpm.networks import DiT, UNet
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom, seed_globally

FLOW = RectifiedFlow(100)
ANGLES = torch.linalg.eigh(ONE.covariances[0])


class GaussianMeanVelocity:
    """The exact mean velocity of the flow of N(mu, Sigma): x_s = m_s + C_s^(1/2) C_t^(-1/2) (x_t - m_t)."""

    intervals = True

    def __call__(self, x: Tensor, t: Tensor, interval: Tensor | None = None) -> Tensor:
        u = (t.double() / FLOW.T)[:, None]
        length = torch.full_like(u, 1e-9) if interval is None else (interval.double() / FLOW.T)[:, None].clamp(min=1e-9)
        s = u - length
        variances, axes = ANGLES

        def deviation(at: Tensor) -> Tensor:
            return ((1 - at) ** 2 * variances + at**2).sqrt()

        mean = ONE.means[0] @ axes
        z = x.reshape(-1, 2).double() @ axes
        z_s = (1 - s) * mean + deviation(s) / deviation(u) * (z - (1 - u) * mean)
        return (((z - z_s) / length) @ axes.T).reshape(x.shape)


EXACT = Denoiser(GaussianMeanVelocity(), FLOW, None, FlowVelocity())


@pytest.mark.parametrize(("t", "s"), [(100.0, 0.0), (100.0, 40.0), (63.5, 0.0), (20.0, 19.0), (50.0, 50.0)])
def test_the_exact_mean_velocity_is_the_fixed_point(t: float, s: float) -> None:
    x_t = randn(16, 1, 1, 2, dtype=torch.float64)
    times, ends = torch.full((16,), t, dtype=torch.float64), torch.full((16,), s, dtype=torch.float64)
    v = ONE.eps(FLOW, x_t, times) - ONE.x_0(FLOW, x_t, times)  # the mean of eps - x_0 given x_t
    found = MeanFlow().target(EXACT, x_t, v, times, ends)
    x = x_t * FLOW.scale_at(times[0])
    expected = EXACT.network(x, times, times - ends) if s < t else v
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert s == t or (found - v).abs().max() > 1e-3, "the mean velocity is another one than that at t"


def test_one_step_of_the_exact_mean_velocity_is_the_whole_flow() -> None:
    x_T = randn(16, 1, 1, 2, dtype=torch.float64)
    truth = AdaptiveODE(1e-7).sample(ONE.denoiser_for(RectifiedFlow(1_000_000), FlowVelocity()), x_T)
    for steps in (1, 2, 4, 7):
        torch.testing.assert_close(MeanFlowSampler(steps).sample(EXACT, x_T), truth, rtol=0, atol=1e-4)
    assert MeanFlowSampler(4).nfe(FLOW.T) == 4
    # one step by the velocity at T gives the mean of the data, for every x_T
    one = DDIM(1, spacing=trailing_spacing).sample(ONE.denoiser_for(FLOW, FlowVelocity()), x_T)
    torch.testing.assert_close(one.reshape(-1, 2), ONE.means.expand(16, 2))


NETWORKS = {
    "U-Net": lambda: tiny_network(intervals=True),
    "U-Net with recomputed blocks": lambda: tiny_network(intervals=True, recompute=(4, 8)),
    "DiT": lambda: DiT(1, 8, width=16, depth=2, heads=2, intervals=True, rotary=True, qk_norm=True, rms_norm=True),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_the_target_has_the_derivative_along_the_flow(make) -> None:
    torch.manual_seed(0)
    network = make().eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    denoise = Denoiser(network, FLOW, None, FlowVelocity())
    x_0, eps = randn(2, 4, 1, 8, 8)
    t, s = torch.tensor([10.0, 50.0, 99.0, 100.0]), torch.tensor([0.0, 20.0, 99.0, 0.0])
    v = eps - x_0

    def predict(step: float) -> Tensor:
        at = t + step * FLOW.T
        x = x_0 + (t / FLOW.T + step).view(-1, 1, 1, 1) * v
        with torch.no_grad():
            return network(x, at, interval=at - s)

    step = 1e-3
    change = (8 * (predict(step) - predict(-step)) - (predict(2 * step) - predict(-2 * step))) / (12 * step)
    expected = v - ((t - s) / FLOW.T).view(-1, 1, 1, 1) * change
    found = MeanFlow().target(denoise, q_sample(FLOW, x_0, t, eps), v, t, s)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=5e-3)
    assert (expected - v).abs().max() > 0.1


def test_the_loss_is_the_squared_error_and_its_gradient_is_weighted() -> None:
    parameter = torch.tensor(2.0, requires_grad=True)

    def network(x: Tensor, t: Tensor, interval: Tensor) -> Tensor:
        return parameter * torch.ones_like(x)

    x_0, eps, t = torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), torch.tensor([10, 50, 100])
    denoise = Denoiser(network, FLOW, None, FlowVelocity())
    for power in (0.0, 0.5, 1.0):
        losses = MeanFlow(power=power).losses(denoise, x_0, t, eps)  # u - v = 2, du/dt = 0
        assert losses.tolist() == pytest.approx([4.0] * 3)
        (gradient,) = torch.autograd.grad(losses.mean(), parameter)
        assert float(gradient) == pytest.approx(4 * (4 + 1e-3) ** -power)


def test_all_weights_have_gradients_in_mixed_precision() -> None:
    network = tiny_network(intervals=True).eval()
    denoise = Denoiser(network, FLOW, None, FlowVelocity())
    x_0, eps = randn(2, 4, 1, 8, 8)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = MeanFlow(share=1.0, power=0.0).losses(denoise, x_0, torch.full((4,), 60.0), eps)
        assert losses.dtype == torch.float32
        losses.mean().backward()
        gradients.append(torch.cat([each.grad.flatten() for each in network.parameters()]))
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.98


def test_the_share_of_images_with_a_step() -> None:
    lengths: list[Tensor] = []

    def network(x: Tensor, t: Tensor, interval: Tensor) -> Tensor:
        lengths.append(interval.detach() / t.detach())
        return x

    n = 4000
    denoise = Denoiser(network, FLOW, None, FlowVelocity())
    t = torch.full((n,), 50.0)
    torch.manual_seed(0)
    MeanFlow(share=0.25).losses(denoise, torch.zeros(n, 1, 1, 1), t, torch.ones(n, 1, 1, 1))
    steps = lengths[0][lengths[0] > 0]
    assert len(steps) / n == pytest.approx(0.25, abs=0.03)
    assert float(steps.mean()) == pytest.approx(0.5, abs=0.03)
    assert 0 < steps.min() < 0.01 < 0.99 < steps.max() <= 1


def test_a_network_without_the_length_of_a_step_predicts_the_velocity() -> None:
    for make in NETWORKS.values():
        network = make().eval()
        for parameter in network.parameters():
            parameter.data += 0.05 * randn(*parameter.shape)
        x, t = randn(2, 1, 8, 8), torch.tensor([3, 90])
        torch.testing.assert_close(network(x, t), network(x, t, interval=torch.zeros(2)))
        assert not torch.allclose(network(x, t), network(x, t, interval=torch.tensor([1.0, 50.0])))
    assert UNet(**TINY).state_dict().keys() < UNet(**TINY, intervals=True).state_dict().keys()


def make_flow_model(**changes):
    arguments = {
        "network": tiny_network(intervals=True),
        "schedule": FLOW,
        "parameterization": FlowVelocity(),
        "objective": MeanFlow(),
        "sampler": MeanFlowSampler(),
    }
    return tiny_model(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": Cosine(20), "parameterization": Velocity()}, "straight path.*got Cosine; use RectifiedFlow"),
        ({"parameterization": Velocity()}, "predicts a velocity, got Velocity; use FlowVelocity"),
        ({"network": tiny_network()}, "set intervals: true in UNet or DiT"),
        ({"sampler": MeanFlowSampler(101)}, "must lie in 1..100"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_model_is_built(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        make_flow_model(**changes)
    with pytest.raises(UserError, match=message):
        make_flow_model(**({"objective": None} | changes))  # the sampler alone


def test_guidance_of_a_step_is_refused_and_conditioning_is_not() -> None:
    model = make_flow_model(network=tiny_network(intervals=True, classes=2))
    check_sampling(model, model.sampler, ClassifierFree(1.0))
    check_sampling(model, DDIM(5), ClassifierFree(3.0))
    with pytest.raises(UserError, match="guidance combines velocities at one time; sample with guidance scale 1"):
        check_sampling(model, model.sampler, ClassifierFree(3.0))


def test_an_image_has_the_same_step_in_any_batch_and_on_one_device_that_of_the_global_generators() -> None:
    denoise = Denoiser(GaussianMeanVelocity(), FLOW, None, FlowVelocity())
    x_0, eps, t = randn(8, 1, 1, 2), randn(8, 1, 1, 2, seed=1), torch.linspace(10, 100, 8)

    def measure(start: int, stop: int) -> Tensor:
        place = {"start": start, "stop": stop, "total": 8}
        objective = MeanFlow().with_random(PositionRandom("cpu", "validate", index=3, block=None, **place))
        return objective.losses(denoise, x_0[start:stop], t[start:stop], eps[start:stop])

    with seed_globally(torch.device("cpu"), "validate", index=3):
        whole = MeanFlow().losses(denoise, x_0, t, eps)
    assert torch.equal(measure(0, 8), whole)
    torch.testing.assert_close(torch.cat([measure(0, 3), measure(3, 8)]), whole)
    assert not torch.allclose(measure(0, 3), whole[3:6])


OBJECTIVES = [MeanFlow(), UncertaintyWeighted(MeanFlow(power=0.0))]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: type(each).__name__)
def test_the_validation_loss_is_the_same_for_accumulated_batches(objective: Objective, tmp_path: Path) -> None:
    losses = []
    for batch_size, accumulated in ((64, 1), (16, 4)):  # positions in a step, as those of several devices
        trainer = quiet_trainer(tmp_path, limit_val_batches=1.0, accumulate_grad_batches=accumulated)
        data = ImageDataModule(Digits(), batch_size=batch_size)
        losses.append(trainer.validate(make_flow_model(objective=objective), data, verbose=False)[0]["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("arguments", [(0.0, 1.0), (1.5, 1.0), (0.5, -1.0), (0.5, math.inf)])
def test_invalid_arguments_are_refused(arguments: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="share in \\(0, 1\\] and a power of at least 0"):
        MeanFlow(*arguments)


class Perceptron(nn.Module):
    """Predicts the mean velocity of points in the plane."""

    intervals = True

    def __init__(self) -> None:
        super().__init__()
        sizes = [6, 128, 128, 128, 2]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, t: Tensor, interval: Tensor | None = None) -> Tensor:
        u = t.float() / FLOW.T
        length = torch.zeros_like(u) if interval is None else interval / FLOW.T
        features = torch.stack([u, length, (3 * u).sin(), (3 * length).sin()], dim=1)
        return self.layers(torch.cat([x.flatten(1), features], dim=1)).reshape(x.shape)


def measure_energy(x: Tensor, y: Tensor) -> float:
    """Return the energy distance of two samples (n, 2), 0 for equal distributions; Szekely & Rizzo 2013."""
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def sample_mixture(n: int, generator: torch.Generator) -> Tensor:
    of = torch.multinomial(TWO.weights.float(), n, replacement=True, generator=generator)
    roots = torch.linalg.cholesky(TWO.covariances).float()
    z = torch.randn(n, 2, 1, generator=generator)
    return TWO.means.float()[of] + (roots[of] @ z)[..., 0]


@pytest.mark.slow
def test_it_learns_to_sample_a_mixture_in_one_step_where_flow_matching_cannot() -> None:
    torch.manual_seed(0)
    generator, network, times = torch.Generator().manual_seed(0), Perceptron(), LogitNormal()
    times.setup(FLOW)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 1200)
    denoise, objective = Denoiser(network, FLOW, None, FlowVelocity()), MeanFlow(share=0.75, power=0.0)
    for _ in range(1200):
        x_0 = sample_mixture(256, generator).reshape(-1, 1, 1, 2)
        t, _ = times.sample(256, generator)
        objective.losses(denoise, x_0, t, torch.randn(x_0.shape, generator=generator)).mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    real, x_T = sample_mixture(2000, generator), randn(2000, 1, 1, 2, seed=5)
    with torch.no_grad():
        found = {
            f"{type(sampler).__name__} {sampler.steps}": measure_energy(sampler.sample(denoise, x_T).flatten(1), real)
            for sampler in (
                *map(MeanFlowSampler, (1, 2, 4)),
                *(DDIM(n, spacing=trailing_spacing) for n in (1, 2, 4, 50)),
            )
        }
    assert max(found[f"MeanFlowSampler {n}"] for n in (1, 2, 4)) < 0.015, found
    assert found["DDIM 1"] > 0.2, found
    assert found["DDIM 50"] < 0.015, found
