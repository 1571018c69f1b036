"""The likelihood by the flow: of data of known density on every path, of integers beside their entropy, in a run."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model, tiny_network
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_ddpm.callbacks import BitsPerDim, FlowLikelihood
from lightning_ddpm.data import Digits, ImageDataModule, MemoryDataset
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.diffusion import (
    DDIM,
    EDM,
    X0,
    Cosine,
    Epsilon,
    FlowVelocity,
    GaussianPath,
    Parameterization,
    RectifiedFlow,
    VarianceExploding,
    Velocity,
)
from lightning_ddpm.metrics.flow_likelihood import (
    FlowEstimate,
    compute_bits_per_dim,
    dequantise,
    measure_flow_likelihood,
    to_bits_per_dim,
)
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

MEAN, DEVIATION = 0.2, 0.3


class GaussianNetwork(nn.Module):
    """The exact network of pixels that are N(0.2, 0.3^2) in [-1, 1], for any path and parameterization."""

    def __init__(self, path: GaussianPath, parameterization: Parameterization) -> None:
        super().__init__()
        self.channels, self.size = 1, 2
        self.path, self.parameterization = [path], parameterization
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        path = self.path[0]
        if isinstance(self.parameterization, EDM):
            sigma = (4 * time[0]).exp()
            t = path.time_at(sigma.atan()).expand(len(x))
            x = x * (sigma**2 + self.parameterization.sigma_data**2).sqrt() * path.signal_at(t[0])
        else:
            t, factor = time, path.scale_at(time[0])
            x = x if factor is None else x / factor
        signal, noise = path.signal_at(t[0]), path.noise_at(t[0])
        score = -(x - signal * MEAN) / (signal**2 * DEVIATION**2 + noise**2)
        x_0 = MEAN + signal * DEVIATION**2 * (x - signal * MEAN) / (signal**2 * DEVIATION**2 + noise**2)
        return self.parameterization.target(path, x_0, -noise * score, t)


def make_model(path: GaussianPath, parameterization: Parameterization, values: ValueRange = UINT8) -> DDPM:
    network = GaussianNetwork(path, parameterization)
    return DDPM(network, path, DDIM(2), parameterization=parameterization, values=values)


CASES = [
    (Cosine(2000), Epsilon()),
    (Cosine(2000), Velocity()),
    (Cosine(2000), X0()),
    (VarianceExploding(0.002, 1000.0), EDM(0.3)),
    (VarianceExploding(0.002, 1000.0), Velocity()),
    (RectifiedFlow(), FlowVelocity()),
    (RectifiedFlow(), X0()),
]


@pytest.mark.parametrize(("path", "parameterization"), CASES, ids=repr)
def test_it_is_the_density_in_the_datas_own_units(path: GaussianPath, parameterization: Parameterization) -> None:
    values = ValueRange("float32", low=-3.0, high=5.0, bounded=False)
    model = make_model(path, parameterization, values)
    x = torch.tensor([[0.2, 0.1, 0.5, -0.1], [0.3, 0.9, -0.3, 0.2]]).reshape(2, 1, 2, 2)
    pixels = values.to_data(x)
    found = compute_bits_per_dim(model, pixels, Condition(), 0, 0, 1e-6, nullcontext)
    density = Normal(4 * MEAN + 1, 4 * DEVIATION).log_prob(pixels.double()).flatten(1).mean(1)
    # x is taken to be x_1, whose noise widens the density slightly
    torch.testing.assert_close(found[1], -density / math.log(2), rtol=0, atol=4e-4)
    torch.testing.assert_close(found[2], found[1] ** 2)


class Levels:
    """Gray levels that are N(0.2, 0.3^2), rounded; a dataset."""

    def __init__(self, n: int) -> None:
        x = MEAN + DEVIATION * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        self.pixels = UINT8.to_data(x)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.pixels[indices], torch.zeros(len(indices), dtype=torch.long)


def measure(model: DDPM, images: Levels, batch_size: int, n: int, ranks: Ranks | None = None) -> FlowEstimate:
    def progress(batches, total):
        return (batch for _, batch in batches)

    return measure_flow_likelihood(model, images, n, 0, batch_size, 1e-4, ranks or Ranks(), nullcontext, progress)  # type: ignore[arg-type]


def test_of_integers_it_is_their_entropy() -> None:
    edges = torch.cat([torch.tensor([-math.inf]), torch.arange(255) / 127.5 - 1 + 1 / 255, torch.tensor([math.inf])])
    mass = Normal(MEAN, DEVIATION).cdf(edges.double()).diff()
    entropy = float(-torch.special.xlogy(mass, mass).sum() / math.log(2))
    found = measure(make_model(RectifiedFlow(), FlowVelocity()), Levels(500), 500, 500)
    assert found.n == 500
    assert 0 < found.standard_error < 0.03
    assert abs(found.mean - entropy) < 4 * found.standard_error + 0.01
    assert 7 <= found.nfe < 200


def test_batches_and_ranks_change_it_by_no_more_than_the_tolerance() -> None:
    model, images = make_model(RectifiedFlow(), FlowVelocity()), Levels(12)
    whole = measure(model, images, 12, 12)
    parts = measure(model, images, 5, 12)
    sums: list[Tensor] = []
    measure(model, images, 5, 12, Ranks(1, 2, lambda x: sums.append(x) or x))
    ranks = measure(model, images, 5, 12, Ranks(0, 2, lambda x: x + sums[0]))
    for other in (parts, ranks):
        assert (other.n, other.mean) == (12, pytest.approx(whole.mean, abs=5e-3))
        assert other.standard_error == pytest.approx(whole.standard_error, rel=2e-2)


def test_dequantised_levels_fill_their_bins_and_a_uniform_density_costs_8_bits() -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).reshape(-1, 1, 1, 1)
    ends = [levels + dequantise(UINT8, torch.full_like(levels, z)) for z in (-9.0, 9.0)]
    torch.testing.assert_close(ends[0][1:], ends[1][:-1])
    width = float(ends[1][-1] - ends[0][0])
    assert width == pytest.approx(2 + 2 / 255)
    assert float(to_bits_per_dim(UINT8, torch.tensor(-3 * math.log(width)), 3)) == pytest.approx(8)
    shares = (dequantise(UINT8, torch.randn(20_000, 1, 1, 1)) * 255 + 1) / 2
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(shares.std()) == pytest.approx(12**-0.5, abs=0.01)
    floats = ValueRange("float32", [0.0, 0.0], [1.0, 2.0])
    assert not dequantise(floats, torch.ones(1, 2, 1, 1)).any()
    assert float(to_bits_per_dim(floats, torch.zeros(()), 2)) == pytest.approx(-0.5)


def test_of_weights_that_have_diverged_it_is_nan_and_reported(tmp_path: Path, capsys) -> None:
    model = tiny_model(schedule=RectifiedFlow(20), parameterization=FlowVelocity(), network=tiny_network())
    for each in model.network.parameters():
        each.data.fill_(math.nan)
    callback = FlowLikelihood(n=4, tolerance=0.1)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], limit_test_batches=1)
    (metrics,) = trainer.test(model, datamodule=ImageDataModule(Digits()), verbose=False)
    assert math.isnan(metrics["test/bits_per_dim_flow"])
    assert math.isnan(metrics["test/bits_per_dim_flow_standard_error"])
    assert "test/bits_per_dim_flow is not finite: the weights have diverged" in capsys.readouterr().out


class OneHeldOut(Digits):
    """Digits, of which a single one is held out."""

    def open(self, root: Path, split: str) -> MemoryDataset:
        pixels, labels = super().open(root, split).__getitems__(range(20 if split == "train" else 1))
        return MemoryDataset(pixels, labels)


@pytest.mark.parametrize("callback", [FlowLikelihood(n=4), BitsPerDim(n=4)], ids=lambda each: type(each).__name__)
def test_a_single_held_out_image_is_refused_before_training(callback, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_steps=1)
    with pytest.raises(UserError, match="bits/dim needs at least 2 held-out images, got 1; hold out more"):
        trainer.fit(tiny_model(), datamodule=ImageDataModule(OneHeldOut(), batch_size=10))


def test_a_run_logs_it_on_a_flow_where_the_variational_bound_is_refused(tmp_path: Path) -> None:
    flow = {"schedule": RectifiedFlow(20), "parameterization": FlowVelocity(), "network": tiny_network()}
    data = ImageDataModule(Digits())
    callback = FlowLikelihood(n=4, tolerance=0.1)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], limit_test_batches=1)
    (metrics,) = trainer.test(tiny_model(**flow), datamodule=data, verbose=False)
    assert callback.estimate
    assert metrics["test/bits_per_dim_flow"] == pytest.approx(callback.estimate.mean, rel=1e-6)
    assert math.isfinite(metrics["test/bits_per_dim_flow_standard_error"])
    trainer = quiet_trainer(tmp_path, callbacks=[BitsPerDim(n=4)], limit_test_batches=1)
    with pytest.raises(UserError, match=r"is continuous; .* or the callback FlowLikelihood in its place"):
        trainer.test(tiny_model(**flow), datamodule=data, verbose=False)
    for bad in ({"n": 1}, {"batch_size": 0}, {"tolerance": 1.0}):
        with pytest.raises(UserError, match="got"):
            FlowLikelihood(**bad)  # type: ignore[arg-type]
