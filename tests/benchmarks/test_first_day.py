"""The program for the first day with a GPU, tried on the CPU with a tiny model."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.command_line import run

from benchmarks.gpu import first_day


@pytest.mark.slow
def test_it_measures_every_part_on_the_cpu_and_writes_the_results(tmp_path: Path) -> None:
    ended = run(sys.executable, "-m", "benchmarks.gpu.first_day", "--device", "cpu", "--tiny", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    for part in first_day.PARTS:
        assert f"{part} ended with status 0" in ended.stdout
        results = json.loads((tmp_path / f"{part}.json").read_text())["results"]
        assert results
        assert not [name for name, each in results.items() if "failed" in each], results
    sampling = json.loads((tmp_path / "sampling.json").read_text())["results"]
    assert sampling["batch 4"]["levels of image 0"] <= 1
    training = json.loads((tmp_path / "training.json").read_text())["results"]
    assert len(training["fp32, batch 4"]["ms"]) == 3


def test_a_variant_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("no such kernel")

    def measure(device: torch.device, tiny: bool):
        yield "first", fail
        yield "second", lambda: {"ms": 1.0}

    monkeypatch.setitem(first_day.PARTS, "training", (measure, 1))
    first_day.run_part("training", argparse.Namespace(device="cpu", tiny=True, out=tmp_path))
    results = json.loads((tmp_path / "training.json").read_text())["results"]
    assert results == {"first": {"failed": "RuntimeError: no such kernel"}, "second": {"ms": 1.0}}


def test_a_part_is_stopped_at_its_time_limit(capsys) -> None:
    first_day.run_limited("endless", [sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert "endless was stopped at its limit of 1 s" in capsys.readouterr().out
