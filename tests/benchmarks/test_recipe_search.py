"""The search of a recipe: who goes on, what a stopped search does again, and what ``fit`` is given."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

pytest.importorskip("diffusers")
pytest.importorskip("greenlet")
import torch

from benchmarks import recipe_runs, recipe_search
from benchmarks.digits_tables import Results
from benchmarks.recipe_candidates import BASE, NETWORKS, RECIPES
from benchmarks.recipe_runs import build_config, read_step
from benchmarks.recipe_search import find_best, halve, make_networks, read_costs

NAMES = {f"recipe: {name}": BASE for name in "abcdefgh"}


def test_a_third_goes_on_and_a_stopped_search_repeats_nothing(tmp_path: Path) -> None:
    """Candidate h is the best at first, and c at the end."""
    done: list[tuple[str, int]] = []
    scores = {1: dict(zip("hgcfedba", range(8), strict=True)), 3: {"h": 3, "g": 2, "c": 0}, 9: {"c": 7}}

    def trial(name: str, recipe: object, rung: int) -> None:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append((name[-1], rung))
        results.add(name, str(rung), {"score": scores[rung][name[-1]]})

    results, stop = Results(tmp_path / "scores.json"), 5
    with pytest.raises(KeyboardInterrupt):
        halve(NAMES, (1, 3, 9), results, trial)
    results, stop = Results(tmp_path / "scores.json"), -1
    assert halve(NAMES, (1, 3, 9), results, trial) == ["recipe: c"]
    assert done == [*((name, 1) for name in "abcdefgh"), ("h", 3), ("g", 3), ("c", 3), ("c", 9)]


def make_options(folder: Path) -> Namespace:
    return Namespace(folder=folder, data=folder / "data", precision="32-true", part="recipe", out=folder / "out")


def test_a_config_has_the_candidate_and_the_length_of_the_run(tmp_path: Path) -> None:
    config = build_config(RECIPES["batch 32"], 1000, recipe_search.SEED, make_options(tmp_path))
    model = config["model"]["init_args"]
    assert (config["trainer"]["max_steps"], config["data"]["batch_size"]) == (1000, 32)
    assert model["lr_scheduler"]["init_args"]["total_steps"] == 1000
    assert model["lr_scheduler"]["init_args"]["max_lr"] == model["optimizer"]["init_args"]["lr"] == 0.0014
    assert config["trainer"]["callbacks"][0]["init_args"]["decay"] == pytest.approx(1 - 1 / 50), "5 per cent"
    assert config["seed_everything"] not in (0, 1, 2), "the seeds of reported runs"


@pytest.mark.slow
def test_a_candidate_that_goes_on_is_resumed_to_its_new_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*arguments: object) -> object:
        return lambda model, sampler: {"score": 1.0}

    def read_digits(name: str) -> dict[str, object]:
        config = read_config(name)
        config["data"] = {"source": {"class_path": "lightning_ddpm.data.Digits"}, "batch_size": 8}
        config["trainer"]["accelerator"] = "cpu"
        config["model"]["init_args"]["network"]["init_args"] |= {"width": 8, "attention": [2]}
        return config

    read_config = recipe_runs.read_config
    monkeypatch.setattr(recipe_runs, "read_config", read_digits)
    monkeypatch.setattr(recipe_search, "make_score", score)
    options, results = make_options(tmp_path), Results(tmp_path / "scores.json")
    trial = recipe_search.make_trial(options, results)
    for rung, steps in ((192, 3), (448, 7)):
        trial("recipe: a, b", BASE, rung)
        assert read_step(tmp_path / "recipe" / "a_b") == steps
    content = torch.load(tmp_path / "recipe" / "a_b" / "last.ckpt", weights_only=True)
    (scheduler,) = content["lr_schedulers"]
    assert scheduler["total_steps"] == 7
    assert scheduler["_schedule_phases"][-1]["end_step"] == 6, "the seventh step has the lowest rate"
    assert scheduler["last_epoch"] == 7
    assert json.loads((tmp_path / "scores.json").read_text())["recipe: a, b | 448"]["steps"] == 7
    assert yaml.safe_load((tmp_path / "recipe" / "a_b.yaml").read_text())["trainer"]["max_steps"] == 7


def test_networks_are_compared_with_the_best_recipe_at_equal_time(tmp_path: Path) -> None:
    results = Results(tmp_path / "scores.json")
    with pytest.raises(SystemExit, match="no result of recipe"):
        find_best(results, "recipe")
    for name, rung, score in (("eps", 1, 0.1), ("P2", 1, 0.2), ("P2", 3, 5.0), ("min-SNR", 3, 4.0)):
        results.add(f"recipe: {name}", str(rung), {"score": score})
    assert find_best(results, "recipe") == "recipe: min-SNR", "among those that were trained longest"
    networks = make_networks(make_options(tmp_path), results)
    assert {each.objective["init_args"]["weight"]["class_path"] for each in networks.values()} == {
        "lightning_ddpm.diffusion.MinSNR"
    }
    assert [dict(each.network) for each in networks.values()] == list(NETWORKS.values())
    with pytest.raises(SystemExit, match="run the part measure first"):
        read_costs(tmp_path)
    (tmp_path / "recipe_step-some.json").write_text(json.dumps({"values": {"a": [2, 9, 1], "b": [4, 5, 6]}}))
    assert read_costs(tmp_path) == {"a": 1, "b": 2.5}
