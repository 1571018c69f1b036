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
