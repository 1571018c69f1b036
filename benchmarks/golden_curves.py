"""Makes the curves that `fit` compares a run with: those of many seeds of a config, as a band.

    python -m benchmarks golden_curves train --config digits --seeds 100:120 --folder DIR
    python -m benchmarks golden_curves write --config digits --seeds 100:120 --folder DIR   # configs/curves/digits.json
    python -m benchmarks golden_curves check --config digits --seeds 200:220 --folder DIR   # how many seeds stay inside

The band is m ± k s of the logarithms at each logged step, where m and s are the mean and the standard deviation over
the seeds, and k is the smallest number by which at most one seed in twenty leaves the band of the others anywhere.
``check`` counts on seeds that the band was not made from. The same command continues what was stopped.
"""

import csv
import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev

from benchmarks.models import CONFIGS, read_config
from benchmarks.recipe_runs import fit
from benchmarks.report import describe_hardware
from lightning_ddpm.callbacks.reference_curves import Band
from lightning_ddpm.utils.files import write_atomically

OUTSIDE = 0.05
"""Share of the seeds that may leave the band of the others."""
COMPARED = ("train/loss", "val/loss", "val/fd")
"""What the names of compared metrics begin with; the losses of parts of the times are not compared."""
OMITTED = (".SampleGrid", ".Memorisation")
"""Callbacks that do not change the curves."""

Points = dict[tuple[str, int], float]
"""Values by metric and step."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("part", choices=["train", "write", "check"])
    parser.add_argument("--config", required=True, help="name of a config")
    parser.add_argument("--seeds", default="100:120", help="first:end")
    parser.add_argument("--folder", type=Path, required=True, help="of the runs, outside the repository")
    parser.add_argument("--data", type=Path, help="folder of the dataset")
    parser.add_argument("--out", type=Path, default=CONFIGS / "curves", help="of write and check: folder of the file")


def run(options: Namespace) -> None:
    folders = {seed: options.folder / options.config / f"seed-{seed}" for seed in parse_seeds(options.seeds)}
    if options.part == "train":
        for seed, folder in folders.items():
            fit(build_config(options, seed), folder)
        return
    runs = {seed: read_points(folder / "metrics.csv") for seed, folder in folders.items()}
    file = options.out / f"{options.config}.json"
    if options.part == "write":
        curves = make_band(list(runs.values()))
        facts = {"config": options.config, "seeds": list(runs), "hardware": describe_hardware(), "curves": curves}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: stream.write(format_band(facts)))
    band = Band.read(file)
    left = {seed: first for seed, points in runs.items() if (first := band.find_exit(points))}
    print(f"{len(runs) - len(left)} of {len(runs)} seeds stay inside; outside: {left}")


def parse_seeds(text: str) -> range:
    """Return the seeds of "first:end"."""
    first, _, end = text.partition(":")
    return range(int(first), int(end))


def build_config(options: Namespace, seed: int) -> dict[str, object]:
    """Return the config with this seed, without what only prints."""
    config = read_config(options.config)
    config["seed_everything"] = seed
    trainer = config["trainer"]
    trainer["callbacks"] = [each for each in trainer["callbacks"] if not each["class_path"].endswith(OMITTED)]
    trainer |= {"enable_progress_bar": False, "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger"}}
    if options.data:
        config["data"]["root"] = str(options.data)
    return config


def read_points(file: Path) -> Points:
    """Return what a run's metrics.csv has of the compared metrics, by the number of steps done."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {
        (name, int(row["step"]) + 1): float(cell)
        for row in rows
        for name, cell in row.items()
        if cell and name.startswith(COMPARED) and name.count("/") == 1 and "_t" not in name
    }


def make_band(runs: list[Points]) -> dict[str, dict[str, list[float]]]:
    """Return step, low and high of every metric that all runs have."""
    points = sorted(set.intersection(*(set(each) for each in runs)))
    logs = [{point: math.log(each[point]) for point in points} for each in runs]
    distances = sorted(max(_distances(each, [other for other in logs if other is not each], points)) for each in logs)
    k = distances[len(runs) - 1 - math.floor(OUTSIDE * len(runs))]
    band: dict[str, dict[str, list[float]]] = {}
    for name, step in points:
        values = [each[name, step] for each in logs]
        m, s = mean(values), stdev(values)
        curve = band.setdefault(name, {"step": [], "low": [], "high": []})
        for key, value in (("step", step), ("low", math.exp(m - k * s)), ("high", math.exp(m + k * s))):
            curve[key].append(value if key == "step" else float(f"{value:.4g}"))
    return band


def _distances(one: Points, others: list[Points], points: Iterable[tuple[str, int]]) -> Iterable[float]:
    """Yield how many standard deviations of the others one run is away from their mean, at each point."""
    for point in points:
        values = [each[point] for each in others]
        yield abs(one[point] - mean(values)) / stdev(values)


def format_band(facts: Mapping[str, object]) -> bytes:
    """Return the file, with a line for each list of numbers."""
    text = json.dumps(facts)
    for key in ("step", "low", "high"):
        text = text.replace(f'"{key}": ', f'\n  "{key}": ')
    return f"{text}\n".encode()
