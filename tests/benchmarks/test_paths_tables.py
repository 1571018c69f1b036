"""The table of predictions and paths: what is trained, and how seeds become a cell."""

from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("greenlet")
from benchmarks.digits_tables import Results
from benchmarks.paths_candidates import PREDICTIONS, SUBJECTS, list_predictions, list_solvers
from benchmarks.paths_tables import build_config, summarise


def test_candidates_differ_in_what_is_compared_alone() -> None:
    subject = SUBJECTS["digits"]
    configs = {name: build_config(subject, name, "U-Net", 1, Path("data")) for name in PREDICTIONS}
    for name, config in configs.items():
        model = config["model"]["init_args"]
        assert config["trainer"]["max_steps"] == subject.steps
        assert config["seed_everything"] == 1
        assert model["optimizer"] == configs["eps"]["model"]["init_args"]["optimizer"]
        assert model["parameterization"]["class_path"].endswith(PREDICTIONS[name].model["parameterization"])
        assert model["network"]["init_args"].get("intervals", False) == PREDICTIONS[name].few_steps
        assert {sampler.nfe(1000) for sampler in list_solvers(PREDICTIONS[name]).values()} >= {19}
    assert configs["EDM"]["model"]["init_args"]["parameterization"]["init_args"] == {"sigma_data": 0.75}
    assert set(list_predictions("U-Net")) - set(list_predictions("DiT")) == {"MeanFlow"}


def test_a_cell_has_the_mean_and_the_spread_of_the_seeds_that_are_done(tmp_path: Path) -> None:
    results = Results(tmp_path / "scores.json")
    assert summarise(results, "eps | DiT", "19 NFE", "features", 1) == ""
    results.add("eps | DiT", "0 | 19 NFE", {"features": 10.0})
    results.add("eps | U-Net", "1 | 19 NFE", {"features": 99.0})
    results.add("eps | DiT", "1 | 1 NFE", {"features": 99.0})
    assert summarise(results, "eps | DiT", "19 NFE", "features", 1) == "10.0"
    results.add("eps | DiT", "2 | 19 NFE", {"features": 14.0})
    assert summarise(results, "eps | DiT", "19 NFE", "features", 1) == "12.0 ± 2.8"
