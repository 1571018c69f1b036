"""field_tables: fields and configs that fit, measurements of exact fields and denoisers, and a whole small run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import field_metrics, field_report, field_tables
from benchmarks.__main__ import main
from benchmarks.gaussian_field import GaussianField
from benchmarks.periodic_unet import PeriodicUNet
from lightning_ddpm.diffusion import Cosine, Denoiser


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_exact_fields_have_the_known_spectra_and_coherence_within_their_errors() -> None:
    field = GaussianField()
    known, found = field_metrics.list_known(field), field_metrics.summarise(field.sample(200, seeded(0)))
    for name, errors in (("spectra", "errors"), ("coherence", "coherence_errors")):
        z = (np.array(found[name]) - known[name]) / np.array(found[errors])
        assert 0.6 < np.sqrt(np.square(z).mean()) < 1.4
    assert known["coherence"] == pytest.approx([0.7] * 24, abs=0.002)
    assert max(found["distance"]) < 0.2


def test_the_bound_of_the_exact_denoiser_lies_little_above_the_density() -> None:
    field, path = GaussianField(8, 12), Cosine(1000)
    x_0 = field.sample(64, seeded(1)).float()
    exact = -field.log_density(x_0) / (x_0[0].numel() * math.log(2))
    denoise = Denoiser(lambda x_t, t: field.predict_eps(path, x_t, t), path, None)
    gap, error = field_metrics.describe_pairs(field_metrics.measure_elbo(denoise, x_0), exact)[1:]
    assert -2 * error < gap < 0.25  # the variances fit no frequency exactly
    worse = Denoiser(lambda x_t, t: 0.9 * field.predict_eps(path, x_t, t), path, None)
    assert field_metrics.describe_pairs(field_metrics.measure_elbo(worse, x_0), exact)[1] > gap + 5 * error


def test_a_shifted_field_gives_a_shifted_prediction() -> None:
    network = PeriodicUNet(2, [16, 24], width=8)
    for each in network.parameters():
        each.data += 0.1 * torch.randn(each.shape, generator=seeded(2))
    x, t = torch.randn(1, 2, 16, 24, generator=seeded(3)), torch.tensor([7])
    with torch.no_grad():
        first, second = network(x, t), network(x.roll((8, 16), (2, 3)), t)
    torch.testing.assert_close(second, first.roll((8, 16), (2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # two trainings and all measurements
def test_the_whole_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pages = {name: f"<!-- {name} -->\n<!-- end -->\n" for name in field_report.MARKS}
    (tmp_path / "fields.md").write_text("\n".join(pages.values()))
    monkeypatch.setattr(field_report, "PAGE", tmp_path / "fields.md")
    monkeypatch.setattr(field_report, "DOCS", tmp_path)
    monkeypatch.setattr(field_tables, "HELD_OUT", 20)
    monkeypatch.setattr(field_metrics, "TOLERANCE", 1e-1)
    for task in ("gaussian", "conditional", "gaussian", "report"):
        words = [
            "--steps",
            "2",
            "--fields",
            "60",
            "--n",
            "10",
            "--likelihoods",
            "2",
            "--folder",
            str(tmp_path / "runs"),
        ]
        main(["field_tables", task, *words])
    found = json.loads((tmp_path / "runs" / "conditional" / "result.json").read_text())
    assert np.shape(found["means"]) == (5, 2)
    assert "closed form" in (tmp_path / "fields.md").read_text()
    assert (tmp_path / "gaussian_field.png").exists()
