"""Reference statistics by worker processes, their cost, and who computes the eigenvalues."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.metrics import CPU, digits, in_memory, load, show_nothing
from PIL import Image
from torch import Tensor
from torchmetrics.image import fid

from lightning_ddpm.data import Digits, ImageDataModule, ImageFolder
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics import DigitsFeatures, FrechetDistance, MetricSuite, Statistics, feature_table
from lightning_ddpm.metrics import frechet as frechet_module
from lightning_ddpm.metrics.extractors import compute_features
from lightning_ddpm.metrics.image_batches import BATCH, iterate_shard
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> ImageDataset:
    """Write 150 digits as image files."""
    for i, image in enumerate(digits(0, 151)):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i:03d}.png")
    return ImageFolder(channels=1, size=8, holdout=0.001).open(tmp_path / "images", "train")


def compute_in_one_loop(data: ImageDataset) -> Statistics:
    """Compute mean and covariance as one process does on a CPU, one batch after the other."""
    extractor, n = load(DigitsFeatures()), len(data)
    total, products = torch.zeros(64, dtype=torch.float64), torch.zeros(64, 64, dtype=torch.float64)
    for start in range(0, n, BATCH):
        pixels = data.__getitems__(range(start, min(start + BATCH, n)))[0]
        features = compute_features(extractor, pixels, CPU)[0].double()
        total += features.sum(0)
        products += features.T @ features
    mean = total / n
    return Statistics(mean.numpy(), ((products - n * torch.outer(mean, mean)) / (n - 1)).numpy(), n)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_worker_processes_change_no_bit_of_the_statistics(files: ImageDataset, workers: int) -> None:
    distance, expected = FrechetDistance(load(DigitsFeatures()), CPU), compute_in_one_loop(files)
    found = distance._compute_reference(files, Ranks(), show_nothing, None, workers)
    assert found.n == expected.n == 150
    assert np.array_equal(found.mu, expected.mu)
    assert np.array_equal(found.sigma, expected.sigma)


@pytest.mark.parametrize("world_size", [1, 3])
def test_worker_processes_read_each_rank_s_images_in_order(files: ImageDataset, world_size: int) -> None:
    for rank in range(world_size):
        alone, ahead = ([*iterate_shard(files, 150, Ranks(rank, world_size), workers)] for workers in (0, 2))
        assert [(count, start) for count, (start, _) in ahead] == [(count, start) for count, (start, _) in alone]
        for (_, (_, first)), (_, (_, second)) in zip(ahead, alone, strict=True):
            assert torch.equal(first, second)


def count_processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every loader appends its number of workers."""
    counts: list[int] = []
    loader = frechet_module.iterate_shard.__globals__["DataLoader"]
    monkeypatch.setitem(
        frechet_module.iterate_shard.__globals__,
        "DataLoader",
        lambda *data, **options: (counts.append(options["num_workers"]), loader(*data, **options))[1],
    )
    return counts


def test_evaluation_reads_by_the_data_s_workers_and_images_in_memory_by_none(
    files: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_processes(monkeypatch)
    suite = MetricSuite(load(DigitsFeatures()), CPU, {"fid"}, 10)
    suite.set_reference(files, None, Ranks(), show_nothing, workers=2)
    assert counts == [2]
    suite.set_reference(in_memory(digits(0, 90)), None, Ranks(), show_nothing, workers=2)
    assert counts == [2]


def test_an_image_that_a_worker_cannot_decode_is_an_error_in_a_sentence(files: ImageDataset, tmp_path: Path) -> None:
    (tmp_path / "images" / "100.png").write_bytes(b"damaged")
    with pytest.raises(UserError) as error:
        list(iterate_shard(files, 150, Ranks(), 2))
    assert "100.png cannot be used: " in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("many", [True, False])
def test_the_cost_of_a_large_reference_is_printed_before_it_is_computed(
    many: bool, files: ImageDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frechet_module, "MANY", 149 if many else 150)
    printed: list[str] = []

    def progress(batches: Iterator[tuple[int, Tensor]], total: int) -> Iterator[Tensor]:
        printed.append(capsys.readouterr().out)
        yield from (batch for _, batch in batches)

    FrechetDistance(load(DigitsFeatures()), CPU).set_reference(files, Ranks(0, 1), progress, workers=2)  # type: ignore[arg-type]
    (line,) = printed
    assert line.startswith("reference: 150 images by digits classifier") is many
    assert ("s with 2 processes that decode; then cached" in line) is many


def measure(distance: FrechetDistance, ranks: Ranks) -> float:
    distance.update_features(compute_features(distance.extractor, digits(500, 700), CPU)[0])
    return distance.compute(ranks)


def test_eigenvalues_are_computed_on_the_first_rank_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    eigenvalues: Callable[..., Tensor] = torch.linalg.eigvals
    monkeypatch.setattr(fid.torch.linalg, "eigvals", lambda a: (calls.append(a), eigenvalues(a))[1])
    distance = FrechetDistance(load(DigitsFeatures()), CPU)
    distance.set_reference(in_memory(digits(0, 300)), Ranks(), show_nothing)
    first, other = measure(distance, Ranks(0, 2)), measure(distance, Ranks(1, 2))
    assert len(calls) == 1
    assert first > 0
    assert np.isnan(other)
    assert measure(distance, Ranks()) == first, "the images of the other rank were reset, too"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_sums_of_a_gpu_are_those_of_the_cpu_in_float64() -> None:
    data = ImageDataModule(Digits()).train
    on_cpu, on_gpu = (
        FrechetDistance(load(DigitsFeatures()), torch.device(name))._compute_reference(
            data, Ranks(), show_nothing, None, 0
        )
        for name in ("cpu", "cuda")
    )
    assert np.allclose(on_gpu.mu, on_cpu.mu, rtol=1e-5, atol=1e-6)
    assert np.allclose(on_gpu.sigma, on_cpu.sigma, rtol=1e-4, atol=1e-5)


class Counting(DigitsFeatures):
    passed = 0

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        self.passed += len(pixels)
        return super().features_and_logits(pixels)


def compare(real: ImageDataset, ranks: Ranks | None = None) -> tuple[dict[str, float], int]:
    """Return metrics of 200 digits that need the reference's features, and how many of the reference were computed."""
    extractor = load(Counting())
    suite = MetricSuite(extractor, CPU, {"fid", "kid", "pr"}, 200)
    suite.set_reference(real, None, ranks or Ranks(), show_nothing)
    computed = extractor.passed
    suite.update(0, digits(500, 700))
    return {name: each.value for name, each in suite.compute(Ranks()).items()}, computed


def test_features_of_a_reference_are_computed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = in_memory(digits(0, 300))
    expected, computed = compare(real)
    assert computed == 300
    assert compare(real) == (expected, 0)
    (path,) = tmp_path.glob("cache/reference/*.npy")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert compare(real) == (expected, 300)
    assert f"computed again: {path} is damaged" in capsys.readouterr().out
    assert compare(in_memory(digits(1, 301)))[1] == 300, "other images have a file of their own"


def test_cached_features_are_counted_once_by_several_ranks() -> None:
    real = in_memory(digits(0, 300))
    compare(real)
    rows = []
    for rank in range(2):
        suite = MetricSuite(load(Counting()), CPU, {"kid"}, 200)
        # both have the statistics, and the first one says that it has the features
        ranks = Ranks(rank, 2, lambda tensor: torch.full_like(tensor, 2) if tensor.ndim == 0 else tensor)
        suite.set_reference(real, None, ranks, show_nothing)
        assert suite.extractor.passed == 0  # type: ignore[attr-defined]
        rows.append(suite.reference)
    assert torch.equal(rows[0], compute_features(load(DigitsFeatures()), digits(0, 300), CPU)[0])
    assert not rows[1].any()


def test_features_of_very_many_images_are_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_table, "MAX_CACHED_BYTES", 300 * 64 * 4 - 1)
    real = in_memory(digits(0, 300))
    assert compare(real)[1] == compare(real)[1] == 300
    assert not list(tmp_path.glob("cache/reference/*.npy"))
