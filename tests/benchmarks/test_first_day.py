"""The program for the first day with a GPU, tried on the CPU with a tiny model."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run

from benchmarks.gpu import first_day, quality, variants
from benchmarks.gpu.variants import Trial
from lightning_ddpm.metrics import DigitsFeatures

CPU = torch.device("cpu")


def read(folder: Path, part: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())["results"]
    return results


@pytest.mark.slow
def test_it_measures_every_part_on_the_cpu_and_writes_the_results(tmp_path: Path) -> None:
    ended = run(sys.executable, "-m", "benchmarks.gpu.first_day", "--device", "cpu", "--tiny", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    for part in first_day.PARTS:
        assert f"{part} ended with status 0" in ended.stdout
        results = read(tmp_path, part)
        assert results
        assert not [name for name, each in results.items() if "failed" in each or "skipped" in each], results
    assert set(read(tmp_path, "sampling")["batch 4"]["largest difference in gray levels"].values()) <= {0, 1}
    training = read(tmp_path, "training")
    assert {f"{name}, batch 4" for name in variants.CHOICES} < training.keys()
    assert all(len(each["ms"]) == 3 for each in training.values())
    assert read(tmp_path, "inception")["TF32 and float32"]["relative change of the features"] == 0
    curve = read(tmp_path, "curve")["digits"]
    assert curve["status"] == "fit ended with status 0"
    assert curve["images seen"] == [64, 128]
    assert all(each > 0 for each in curve["val/fd_digits"])


def test_a_variant_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("no such kernel")

    def measure(trial: Trial):
        yield "first", fail
        yield "second", lambda: {"ms": 1.0}

    monkeypatch.setitem(first_day.PARTS, "training", (measure, 1))
    first_day.run_part("training", Trial(CPU, tiny=True), tmp_path)
    assert read(tmp_path, "training") == {"first": {"failed": "RuntimeError: no such kernel"}, "second": {"ms": 1.0}}


def test_a_part_is_stopped_at_its_time_limit_with_its_children(tmp_path: Path, capsys) -> None:
    child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    first_day.run_limited("endless", [sys.executable, "-c", parent], 3)
    assert "endless was stopped at its limit of 3 s" in capsys.readouterr().out
    number = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(number, 9)
    pytest.fail("the child still runs")


def test_nothing_starts_after_the_end(capsys) -> None:
    first_day.run_limited("late", ["no such program"], -1)
    assert "late was not started: the time is over" in capsys.readouterr().out


def test_all_parts_together_take_less_than_ten_minutes() -> None:
    limits = [limit for part, (_, limit) in first_day.PARTS.items() if part != "curve"]
    rest = 60 * 9.8 - sum(limits) - first_day.TESTS - first_day.START - quality.END
    assert rest > 60, "training with an FID curve has a minute at the worst"


def test_without_weights_inception_is_left_out_in_words(tmp_path: Path) -> None:
    first_day.run_part("inception", Trial(CPU, weights_path=tmp_path / "lost.pth"), tmp_path)
    for each in read(tmp_path, "inception").values():
        assert "lost.pth with Inception's weights: give its path as --weights_path" in each["failed"]


def test_the_change_by_tf32_is_that_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    exact = DigitsFeatures.features_and_logits

    def rounded(self: DigitsFeatures, pixels: torch.Tensor) -> Any:
        features, logits = exact(self, pixels)
        return features * (1.002 if torch.backends.cudnn.allow_tf32 else 1), logits

    monkeypatch.setattr(DigitsFeatures, "features_and_logits", rounded)
    try:
        compare = dict(quality.measure_inception(Trial(CPU, tiny=True)))["TF32 and float32"]
        assert compare()["relative change of the features"] == pytest.approx(2e-3, rel=1e-3)
    finally:
        torch.set_float32_matmul_precision(before)


def test_without_data_or_time_the_curve_is_left_out_in_words() -> None:
    for trial, words in ((Trial(CPU, seconds=99), "--data"), (Trial(CPU, tiny=True), "left no time")):
        ((_, measure),) = quality.measure_curve(trial)
        assert words in measure()["skipped"]


def test_the_curve_s_config_evaluates_within_the_time_only(tmp_path: Path) -> None:
    config = quality.configure("cifar10_fast", tmp_path, tmp_path / "weights.pth")
    quality.shorten(config, Trial(CPU, data=tmp_path))
    (evaluation,) = quality.list_evaluations(config)
    assert evaluation["init_args"]["every_n_steps"] == quality.BETWEEN
    assert evaluation["init_args"]["extractor"]["init_args"]["weights_path"] == str(tmp_path / "weights.pth")
    assert config["data"]["root"] == str(tmp_path)
    names = [each["class_path"].rpartition(".")[2] for each in config["trainer"]["callbacks"]]
    assert names == ["ChannelsLast", "Compile", "EMA", "Evaluation"]


def test_gray_levels_are_compared_over_all_images_that_batches_share(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = variants.DDPM.generate

    def shifted(self: Any, request: Any, start: int, stop: int) -> torch.Tensor:
        images = generate(self, request, start, stop)
        if stop == 4:
            images[1] = torch.where(images[1] > 100, images[1] - 3, images[1] + 3)
        return images

    monkeypatch.setattr(variants.DDPM, "generate", shifted)
    found = [measure() for _, measure in variants.measure_sampling(Trial(CPU, tiny=True))]
    levels = found[-1]["largest difference in gray levels"]
    assert levels["images of batch 1"] <= 1
    assert 2 <= levels["images of batch 2"] <= 4
