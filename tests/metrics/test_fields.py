"""Spectra and marginals: against closed forms and scipy, over ranks, and of a model's images during training."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from scipy.stats import wasserstein_distance
from torch import Tensor

from lightning_ddpm.callbacks import Evaluation
from lightning_ddpm.data import Digits, ImageDataModule, MemoryDataset
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.metrics import fields
from lightning_ddpm.metrics.extractors import DigitsFeatures
from lightning_ddpm.metrics.fields import (
    FieldMetrics,
    compute_radial_spectrum,
    compute_spectral_distance,
    compute_wasserstein,
)
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

VALUES = ValueRange("float32", -1.0, 1.0, bounded=False)
CPU = torch.device("cpu")


def no_progress(batches, total):
    return (batch for _, batch in batches)


def fields_of(n: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return scale * torch.randn(n, 2, 12, 16, generator=generator) + shift


def measure(images: Tensor, reference: Tensor, ranks: Ranks | None = None) -> dict[str, float]:
    metrics = FieldMetrics(images.shape[1:], CPU, fields.FIELD_METRICS, len(images))
    data = MemoryDataset(reference, torch.full((len(reference),), -1), VALUES)
    metrics.set_reference(data, None, Ranks(), no_progress)
    for start in range(0, len(images), 5):
        metrics.update(start, images[start : start + 5])
    return {name: each.value for name, each in metrics.compute(ranks or Ranks()).items()}


def test_a_wave_has_its_power_in_the_ring_of_its_frequency() -> None:
    x = torch.arange(16.0)
    wave = (2 * math.pi * 3 * x / 16).cos().expand(1, 1, 12, 16)  # 3/16 cycles per pixel: 2.25 in 12 pixels
    spectrum = compute_radial_spectrum(wave + 5)
    assert spectrum.shape == (1, 1, 6)
    rings = torch.round(torch.sqrt(torch.fft.fftfreq(12)[:, None] ** 2 + torch.fft.fftfreq(16) ** 2) * 12)
    # sum of |FFT|^2 / (h w) is the sum of squares, by Parseval: h w / 2 for a cosine
    torch.testing.assert_close(float(spectrum[0, 0, 1]) * int((rings == 2).sum()), 12 * 16 / 2, rtol=1e-6, atol=0)
    spectrum[0, 0, 1] = 0
    assert spectrum.abs().max() < 1e-9, "the mean is left out"


def test_white_noise_has_a_flat_spectrum_and_a_gain_is_its_decibels() -> None:
    noise = torch.randn(400, 1, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = compute_radial_spectrum(noise).mean(0)
    assert (spectrum - 1).abs().max() < 0.08
    assert float(compute_spectral_distance(spectrum, 4 * spectrum)) == pytest.approx(10 * math.log10(4))
    assert float(compute_spectral_distance(torch.zeros_like(spectrum), spectrum)) == pytest.approx(120, abs=10)


@pytest.mark.parametrize("sizes", [(50, 50), (31, 70), (1, 9)])
def test_wasserstein_equals_scipys(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=sizes[0]), 2 * random.normal(size=sizes[1]).round(1) + 1
    assert compute_wasserstein(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(wasserstein_distance(a, b))


def test_metrics_of_scaled_and_shifted_fields_are_those_of_the_closed_form() -> None:
    found = measure(fields_of(60, scale=2.0, shift=3.0), fields_of(61))
    assert found["spectrum_db"] == pytest.approx(10 * math.log10(4), abs=0.4)
    # N(3, 2) to N(0, 1): the mean of |3 + z| over a standard normal z
    z = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    for name in ("wasserstein", "wasserstein/channel_0", "wasserstein/channel_1"):
        assert found[name] == pytest.approx(float((3 + z).abs().mean()), abs=0.1)
    same = measure(fields_of(60), fields_of(60))
    assert max(same.values()) < 1e-9


def test_of_many_values_evenly_spaced_ones_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    every = measure(fields_of(60), fields_of(61))
    monkeypatch.setattr(fields, "MAX_VALUES", 60 * 24)
    some = measure(fields_of(60), fields_of(61))
    assert some["spectrum_db"] == every["spectrum_db"]
    assert 0 < abs(some["wasserstein"] - every["wasserstein"]) < 0.05
    constant = torch.arange(12.0 * 16).reshape(1, 1, 12, 16).expand(60, 2, -1, -1)
    assert measure(constant, constant[:60])["wasserstein"] == 0


@pytest.mark.parametrize(
    ("broken", "message"), [(0, "image 3 of the evaluated images"), (1, "image 3 of the reference")]
)
def test_values_that_are_not_finite_are_refused(broken: int, message: str) -> None:
    sets = fields_of(6), fields_of(5)
    sets[broken][3, 1, 2:, 4] = (math.nan, math.inf)[broken]
    with pytest.raises(UserError, match=f"{message} has NaN or infinity; leave such images out"):
        measure(*sets)


def test_ranks_together_measure_as_one() -> None:
    images, reference = fields_of(11), fields_of(13)
    single = measure(images, reference)
    data, tables = MemoryDataset(reference, torch.full((13,), -1), VALUES), []
    for rank in (1, 0):  # the first rank is the last, so that it can add what the other has

        def reduce(value: Tensor, rank: int = rank) -> Tensor:
            if rank:
                tables.append(value.clone())
                return value
            return value + tables.pop(0)

        metrics = FieldMetrics(images.shape[1:], CPU, fields.FIELD_METRICS, len(images))
        metrics.set_reference(data, None, Ranks(rank, 2, reduce), no_progress)
        for start, stop in [(0, 6)] if rank == 0 else [(6, 11)]:
            metrics.update(start, images[start:stop])
        found = metrics.compute(Ranks(rank, 2, reduce))
    assert {name: each.value for name, each in found.items()} == pytest.approx(single, abs=1e-12)


def test_evaluation_without_a_network_in_fit(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)

    class Noise(Digits):
        channels, size, values = 2, 8, VALUES

        def open(self, root, split):
            images = torch.randn(40, 2, 8, 8, generator=generator)
            return MemoryDataset(images, torch.full((40,), -1), VALUES)

    model = tiny_model(network=UNet(2, 8, width=8, multipliers=(1, 2), attention=(), blocks=1, groups=4), values=VALUES)
    for reference in ("training", "held_out"):
        evaluation = Evaluation(None, 8, ["spectrum", "marginals"], every_n_steps=2, reference=reference)
        trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[evaluation])
        trainer.fit(model, ImageDataModule(Noise(), batch_size=8))
        names = {"val/spectrum_db", "val/wasserstein", "val/wasserstein/channel_1"}
        assert names <= set(evaluation.last_metrics)
        assert all(math.isfinite(each) for each in evaluation.last_metrics.values())


def test_metrics_and_networks_that_do_not_belong_together_are_refused() -> None:
    for extractor, metrics in ((None, ["fid"]), (DigitsFeatures(), ["spectrum"])):
        with pytest.raises(UserError, match="computed without a network, all others with one"):
            Evaluation(extractor, 8, metrics)
    metrics = FieldMetrics((1, 8, 8), CPU, ["spectrum"], 2)
    with pytest.raises(UserError, match="statistics of features only"):
        metrics.set_reference(None, None, Ranks(), no_progress)
