"""Known truth: a model that is given a vector recovers the mean of the images given the vector."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ddpm.data import ConditionedDataset, ConditionFormat, ImageSource, MemoryDataset
from lightning_ddpm.data.datasets import FileDataset, ImageDataset
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.diffusion import DDIM, X0, ClassifierFree, Cosine
from lightning_ddpm.models.conditioning import measure_conditions
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import VectorEmbedding
from lightning_ddpm.networks.conditions import Conditions
from lightning_ddpm.utils.condition import Condition, as_condition

PATTERNS = torch.tensor([[0.5, -0.5, 0.5, 0.0], [0.0, 0.5, 0.25, -0.5]])
NOISE = 0.1
VALUES = ValueRange("float32", -1.0, 1.0, bounded=False)


def mean_given(vector: Tensor) -> Tensor:
    """Return E[x | vector], (b, 1, 2, 2): a plane wave of the first number and the patterns of both."""
    a, b = vector.T
    wave = torch.stack([torch.sin(2 * a), b * b], dim=1) @ PATTERNS
    return wave.reshape(-1, 1, 2, 2)


class Waves(ImageSource):
    """x ~ N(mean_given(v), 0.01 I) with v uniform on [10, 12] x [-1, 1]: its first number must be standardised."""

    channels, size, values = 1, 2, VALUES
    condition = ConditionFormat(vector=("a", "b"))

    def prepare(self, root: Path) -> None:
        pass

    def open(self, root: Path, split: Any) -> ImageDataset:
        random = torch.Generator().manual_seed(int(split == "test"))
        vector = 2 * torch.rand(8192 if split == "train" else 64, 2, generator=random) + torch.tensor([10.0, -1.0])
        x = mean_given(vector) + NOISE * torch.randn(len(vector), 1, 2, 2, generator=random)
        return ConditionedDataset(MemoryDataset(x, torch.full((len(x),), -1), VALUES), vector)

    def image_files(self, root: Path) -> list[FileDataset]:
        return []

    def class_names(self, root: Path) -> list[str]:
        return []


class Perceptron(nn.Module):
    """Predicts x_0 of 4 pixels from x_t, the timestep and the condition."""

    channels, size = 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 96)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 4))
        self.conditions = Conditions([VectorEmbedding(["a", "b"])])
        self.conditions.build(96)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        h = self.first(torch.cat([x_t.flatten(1), t[:, None] / 50], dim=1))
        return self.rest(self.conditions.add(h, as_condition(condition), t)).reshape(x_t.shape)


def train(model: DDPM, data: ConditionedDataset, steps: int) -> None:
    """Minimise the model's loss over random batches, with a tenth of the conditions hidden."""
    measure_conditions(model.network, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x_0, condition = data.__getitems__(range(len(data)))
    for _ in range(steps):
        chosen = torch.randint(len(data), (512,))
        given = as_condition(condition).map(lambda each: each[chosen]).hide(torch.rand(512) < 0.1)  # noqa: B023
        t = model.schedule.sample_times(512, torch.default_generator)
        loss = model.loss(x_0[chosen], t, torch.randn(512, 1, 2, 2), given).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


@pytest.mark.slow
def test_the_mean_given_a_vector_is_recovered() -> None:
    torch.manual_seed(0)
    model, data = (
        DDPM(Perceptron(), Cosine(50), DDIM(25), parameterization=X0(), values=VALUES),
        Waves().open(Path(), "train"),
    )
    assert isinstance(data, ConditionedDataset)
    train(model, data, 1500)
    wanted, n = torch.tensor([[10.2, -0.8], [11.0, 0.0], [11.5, 0.9]]), 500
    rows = Condition(vector=wanted.repeat_interleave(n, 0))
    with torch.no_grad():
        found = model.eval().generate(SampleRequest(3 * n, conditions=lambda *_: rows), 0, 3 * n).reshape(3, n, 4)
        hidden = model.generate(SampleRequest(n, guidance=ClassifierFree(0.0)), 0, n)
    expected = mean_given(wanted).reshape(3, 4)
    assert (expected - expected.roll(1, 0)).abs().amax() > 0.4, "the means differ"
    torch.testing.assert_close(found.mean(1), expected, atol=0.04, rtol=0)
    assert data.vector is not None
    torch.testing.assert_close(hidden.mean(0), mean_given(data.vector).mean(0), atol=0.1, rtol=0)
