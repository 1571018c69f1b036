"""family_tables: equal CPU time, the way to the latent space and back, and the cells of the table."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import fit
from helpers.tiny import tiny_model

from benchmarks import family_tables
from benchmarks.cpu_time import CPUTime, read_seconds
from benchmarks.family_metrics import reconstruct
from examples.families.flow import Flow
from examples.families.gan import GAN
from examples.families.vae import VAE
from lightning_ddpm.callbacks import Checkpoints
from lightning_ddpm.data import Digits
from lightning_ddpm.models.checkpoint import load


def test_a_resumed_run_has_the_time_of_all_its_steps(tmp_path: Path) -> None:
    for steps, path in ((2, None), (5, tmp_path / "last.ckpt")):
        callbacks = [timer := CPUTime(), Checkpoints(every_n_steps=1)]
        model = tiny_model()
        model.save_hyperparameters({"_class_path": "a.B"}, logger=False)
        fit(tmp_path, callbacks, model, max_steps=steps, ckpt_path=path, enable_checkpointing=True)
    assert len(timer.seconds) == 5
    assert min(timer.seconds) > 0
    assert read_seconds(tmp_path) == timer.seconds


def test_all_families_get_equal_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first steps of a run are slow, and are not measured."""
    monkeypatch.setattr(family_tables, "fit", lambda config, folder: None)
    monkeypatch.setattr(family_tables, "read_seconds", lambda folder: [9.0] * 10 + [0.25] * 30)
    options = Namespace(minutes=2.0, folder=tmp_path, task="digits", data=tmp_path)
    assert {family_tables.count_steps(family, options) for family in family_tables.FAMILIES} == {480}
    configs = [family_tables.build_config(family, 1, 480, 4, options) for family in family_tables.FAMILIES]
    assert [each["model"]["init_args"]["optimizer"]["init_args"]["lr"] for each in configs] == [0.004] * 4
    assert len({str(each["data"]) for each in configs} | {str(each["trainer"]["callbacks"]) for each in configs}) == 2


def test_only_a_flow_and_ddpm_reconstruct_exactly() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    flow = Flow(1, 8, 8, 2)
    for each in flow.parameters():
        each.data += 0.05 * torch.randn_like(each)
    with torch.no_grad():
        assert reconstruct(flow, pixels) == {"reconstruction": 0.0, "reconstruction_nfe": 0}
        assert reconstruct(VAE(1, 8, 4, 2), pixels)["reconstruction"] > 10
        assert reconstruct(GAN(1, 8, 4, 2), pixels) == {}
        digits, _ = Digits().open(Path(), "test").__getitems__(range(3))
        found = reconstruct(load("digits"), digits)
    assert found["reconstruction"] < 4
    assert found["reconstruction_nfe"] > 5


def test_a_cell_has_the_mean_and_the_deviation_over_the_seeds() -> None:
    results: list[dict[str, Any]] = [{"distance": 1.0, "steps": 7}, {"distance": 3.0, "steps": 7}]
    assert family_tables.format_column(results, "distance") == "2.0 ± 1.4"
    assert family_tables.format_column(results, "steps") == "7"
    assert family_tables.format_column(results, "bits") == "none"
