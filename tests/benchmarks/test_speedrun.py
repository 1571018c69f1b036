"""The speed run: its clock, and every program trained for some seconds, sampled and scored."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import real_data

pytest.importorskip("diffusers")
pytest.importorskip("greenlet")

from benchmarks import speedrun_clock
from benchmarks.__main__ import main
from benchmarks.speedrun_clock import SHARES, Clock, read_snapshots
from benchmarks.speedrun_programs import PROGRAMS
from lightning_ddpm.metrics.suite import list_metric_names


def test_the_clock_keeps_weights_at_its_shares_and_stops_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(speedrun_clock.time, "time", lambda: now)

    def save(path: Path) -> None:
        nonlocal now
        now += 0.4
        path.write_text("weights")

    clock, steps = Clock(tmp_path, 990.0, 100.0), 0
    while True:
        now, steps = now + 1, steps + 1
        if clock.step(64 * steps, save):
            break
    found = read_snapshots(tmp_path)
    assert [each["share"] for each in found.values()] == list(SHARES)
    minutes = [60 * each["minutes"] for each in found.values()]
    assert minutes == pytest.approx([13.4, 25.8, 51.2, 99.6], abs=1)
    assert minutes[-1] <= 100, "the last weights are written before the time is over"
    assert [each["images"] for each in found.values()][-1] == 64 * steps


def test_a_program_without_further_steps_ends_before_its_time(tmp_path: Path) -> None:
    clock = Clock(tmp_path, speedrun_clock.time.time(), 3600.0)
    assert clock.step(64, lambda path: path.write_text("weights"), is_last=True)
    assert [each["share"] for each in read_snapshots(tmp_path).values()] == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("program", list(PROGRAMS))
def test_a_program_trains_against_the_clock_and_samples(program: str, tmp_path: Path) -> None:
    if program == "denoising-diffusion-pytorch":
        pytest.importorskip("denoising_diffusion_pytorch")
    data = real_data("MNIST/raw").parent.parent
    words = ["--program", program, "--dataset", "mnist", "--minutes", "0.2", "--data", str(data)]
    main(["speedrun", "train", *words, "--folder", str(tmp_path)])
    (run,) = tmp_path.glob("*/run.json")
    assert json.loads(run.read_text())["describe"]["nfe"] > 0
    found = read_snapshots(run.parent)
    assert list(found.values())[-1]["share"] == 1
    images = PROGRAMS[program]("tuned", "mnist").sample(next(iter(found)), 2, 0)
    assert (images.shape, images.dtype) == ((2, 1, 28, 28), torch.uint8)
    assert images.unique().numel() > 2
    with pytest.raises(SystemExit, match="a run is timed once"):
        main(["speedrun", "train", *words, "--folder", str(tmp_path)])


def test_the_report_has_every_metric_of_evaluate_and_a_plot_of_the_complete_runs(tmp_path: Path) -> None:
    scores = {}
    for seed, shares in ((0, SHARES), (1, SHARES[-1:])):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        facts = {"program": "lightning_ddpm", "settings": "tuned", "dataset": "mnist", "minutes": 30.0, "seed": seed}
        (folder / "run.json").write_text(json.dumps(facts | {"hardware": "a CPU", "describe": {"nfe": 20}}))
        for share in shares:
            names = list_metric_names("fid", ["fid", "kid", "pr"])
            values = {name: 10.0 * (index + 1) / share for index, name in enumerate(names)}
            scores[f"run-{seed} | {share:g} | 100"] = values | {"minutes": 30 * share, "images": 64}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    main(["speedrun", "report", "--folder", str(tmp_path), "--n", "100", "--out", str(tmp_path / "out")])
    (written,) = (tmp_path / "out").glob("speedrun-*.json")
    rows = json.loads(written.read_text())["values"]
    assert rows["mnist, lightning_ddpm, seed 0: fid"] == [80, 40, 20, 10]
    assert rows["mnist, lightning_ddpm, seed 1: recall_inception"] == [None, None, None, 40]
    assert (tmp_path / "out" / "speedrun.png").stat().st_size > 1000
