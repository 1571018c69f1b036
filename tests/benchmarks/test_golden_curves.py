"""Tests of the band of many runs' curves."""

import json
import math
import random
from argparse import ArgumentParser

from benchmarks import golden_curves
from lightning_ddpm.callbacks.reference_curves import Band

STEPS = range(20, 820, 20)


def draw(seed, shift=0.0):
    """Return the curve of one run: a falling loss with a deviation of 10 per cent."""
    rng = random.Random(seed)
    return {("train/loss", step): math.exp(shift + rng.gauss(0, 0.1)) / step for step in STEPS} | {
        ("val/loss", step): math.exp(shift + rng.gauss(0, 0.01)) / step for step in (400, 800)
    }


def make_band(seeds):
    curves = golden_curves.make_band([draw(seed) for seed in range(seeds)])
    return Band.parse({"config": "digits", "seeds": list(range(seeds)), "curves": curves})


def test_nineteen_in_twenty_other_seeds_stay_in_the_band():
    band = make_band(20)
    inside = sum(band.find_exit(draw(seed)) is None for seed in range(1000, 1400))
    assert 0.9 < inside / 400 < 0.995


def test_a_run_that_differs_leaves_the_band_at_once():
    band = make_band(20)
    assert band.find_exit(draw(7, shift=0.7)) == ("train/loss", 20)


def test_points_that_one_run_lacks_are_not_compared():
    runs = [draw(seed) for seed in range(20)]
    del runs[3]["train/loss", 20]
    assert golden_curves.make_band(runs)["train/loss"]["step"][0] == 40


def test_the_file_is_what_the_callback_reads(tmp_path, capsys):
    for seed in range(5):
        folder = tmp_path / "runs" / "digits" / f"seed-{seed}"
        folder.mkdir(parents=True)
        lines = ["step,train/loss,train/loss_t1,val/loss"]
        lines += [f"{step - 1},{value:.6f},9," for (name, step), value in draw(seed).items() if name == "train/loss"]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    parser = ArgumentParser()
    golden_curves.add_options(parser)
    words = ["--config", "digits", "--seeds", "0:5", "--folder", str(tmp_path / "runs"), "--out", str(tmp_path)]
    golden_curves.run(parser.parse_args(["write", *words]))
    band = Band.read(tmp_path / "digits.json")
    assert (band.config, band.seeds) == ("digits", 5)
    assert list(band.limits) == ["train/loss"]
    low, high = band.limits["train/loss"][400]
    assert low < 1 / 400 < high
    assert json.loads((tmp_path / "digits.json").read_text())["seeds"] == [0, 1, 2, 3, 4]
    assert "5 of 5 seeds stay inside" in capsys.readouterr().out
