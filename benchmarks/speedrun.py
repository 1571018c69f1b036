"""Image quality by training time on two cores, of this program and of two others.

    python -m benchmarks speedrun train --program lightning_ddpm --dataset mnist --minutes 30 --folder DIR
    python -m benchmarks speedrun score --folder DIR --weights_path FILE    # of all runs in the folder
    python -m benchmarks speedrun report --folder DIR                       # into benchmarks/results/

The rules:

- A run trains in a process of its own on a machine that does nothing else. Its clock starts before that process does,
  so that imports count, and stops when the last weights are written. Nothing is pretrained.
- The averaged weights are kept at an eighth, a quarter, a half and the whole of the time.
- FID is of 10,000 samples against all training images, by Inception 2015-12-05; KID, precision and recall beside it.
  Samples are by each program's own sampler, with its NFE named.
- This program has the dataset's config as it is shipped. The others have the better of their own defaults and of what
  an hour of trying found; their images are decoded before the clock starts.
- All programs compute in huge pages of memory (lightning_ddpm/utils/huge_pages.py), as `python -m lightning_ddpm` does.

``score`` may run later and elsewhere, and the same command continues what was stopped.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digits_tables import Results
from benchmarks.page import DOCS, save_curves
from benchmarks.report import PAGE, describe_hardware, write_result, write_tables
from benchmarks.speedrun_clock import SHARES, Clock, read_snapshots
from benchmarks.speedrun_programs import PROGRAMS
from lightning_ddpm.commands.main import main
from lightning_ddpm.data import MNIST, FashionMNIST
from lightning_ddpm.utils.files import write_atomically
from lightning_ddpm.utils.huge_pages import VARIABLE, format_tunables

DATASETS = {"mnist": MNIST, "fashion_mnist": FashionMNIST}
PREPARED = "images"
"""Folder of the images as the other programs read them, beside the runs."""
SEED = 1000
"""Of the samples; the run's own is added."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("part", choices=["train", "train-here", "score", "report"], help="train-here: used by train")
    parser.add_argument("--folder", type=Path, required=True, help="of the runs, outside the repository")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--program", choices=list(PROGRAMS), default="lightning_ddpm")
    parser.add_argument("--settings", default="tuned", choices=["tuned", "defaults"], help="of the other programs")
    parser.add_argument("--dataset", choices=list(DATASETS), default="mnist")
    parser.add_argument("--minutes", type=float, default=30.0, help="wall clock, from the command to the last weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=float, help="of train-here: the time at which the clock started")
    parser.add_argument("--n", type=int, default=10_000, help="of score: images per FID")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=list(SHARES), choices=SHARES, help="of score: shares of the time"
    )
    parser.add_argument("--weights_path", type=Path, help="of score: Inception's weights; downloaded if not given")
    parser.add_argument("--out", type=Path, default=PAGE.parent / "results", help="of report: folder of its file")


def run(options: Namespace) -> None:
    if options.part == "train":
        train(options)
    elif options.part == "train-here":
        folder = get_folder(options)
        clock = Clock(folder, options.start, 60 * options.minutes)
        program = PROGRAMS[options.program](options.settings, options.dataset)
        program.train(options.data, options.folder / PREPARED, clock, options.seed)
    elif options.part == "score":
        score(options)
    else:
        write_report(options)


def get_folder(options: Namespace) -> Path:
    """Return the folder of a run."""
    settings = "" if options.program == "lightning_ddpm" else f"-{options.settings}"
    name = f"{options.dataset}-{options.program}{settings}-{options.minutes:g}min-seed{options.seed}"
    return Path(options.folder) / name


def train(options: Namespace) -> None:
    """Prepare what is not part of the time, start the clock, and train in a new process."""
    folder = get_folder(options)
    if folder.exists():
        sys.exit(f"{folder} exists: a run is timed once; delete the folder to repeat it")
    folder.mkdir(parents=True)
    program = PROGRAMS[options.program](options.settings, options.dataset)
    (options.folder / PREPARED).mkdir(exist_ok=True)
    program.prepare(DATASETS[options.dataset]().open(options.data, "train"), options.folder / PREPARED)
    words = {name: getattr(options, name) for name in ("program", "settings", "dataset", "minutes", "seed")}
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    start = time.time()
    where = ["--folder", str(options.folder), "--data", str(options.data), "--start", repr(start)]
    status = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speedrun", "train-here", *given, *where],
        env={**os.environ, VARIABLE: format_tunables()},
        check=False,
    ).returncode
    snapshots = read_snapshots(folder)
    if status or not snapshots:
        sys.exit(f"{options.program} ended with {status} and {len(snapshots)} snapshots")
    facts = words | {"hardware": describe_hardware(), "describe": program.describe()}
    (folder / "run.json").write_text(json.dumps(facts, indent=1) + "\n")
    print("\n".join(f"{each['minutes']:.2f} minutes: {each['images']:,} images" for each in snapshots.values()))


def score(options: Namespace) -> None:
    """Compute the metrics of all weights that have none, by the command ``evaluate``; the last weights of all first."""
    results = Results(options.folder / "scores.json")
    runs = read_runs(options.folder)
    for share in sorted(options.shares, reverse=True):
        for folder, facts in runs:
            program = PROGRAMS[facts["program"]](facts["settings"], facts["dataset"])
            found = [each for each in read_snapshots(folder).items() if each[1]["share"] == share]
            row = f"{folder.name} | {share:g}"
            if not found or (row, str(options.n)) in results:
                continue
            ((weights, snapshot),) = found
            samples, out = weights.with_suffix(".npz"), weights.with_suffix(".metrics.json")
            if not samples.exists():
                images = program.sample(weights, options.n, SEED + facts["seed"])
                write_atomically(samples, lambda file, images=images: np.savez(file, arr_0=images.permute(0, 2, 3, 1)))
            words = ["evaluate", "--images", samples, "--reference", DATASETS[facts["dataset"]].__name__]
            words += ["--root", options.data, "--metrics", "fid", "kid", "pr", "--out", out, "--extractor", "Inception"]
            words += ["--extractor.weights_path", options.weights_path] if options.weights_path else []
            if status := main([str(word) for word in words]):
                sys.exit(status)
            metrics = json.loads(out.read_text())["metrics"]
            values = {name: each["value"] for name, each in metrics.items()}
            results.add(row, str(options.n), {**values, "minutes": snapshot["minutes"], "images": snapshot["images"]})


def read_runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folder and the facts of every complete run."""
    return [(path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("*/run.json"))]


def write_report(options: Namespace) -> None:
    """Write one row a run and metric, at every share of the time, and plot the FID on MNIST against minutes."""
    results = Results(options.folder / "scores.json")
    rows: dict[str, list[float | None]] = {}
    facts: dict[str, Any] = {}
    for folder, each in read_runs(options.folder):
        settings = "" if each["program"] == "lightning_ddpm" else f"{each['settings']}, "
        name = f"{each['dataset']}, {each['program']}, {settings}seed {each['seed']}"
        facts[name] = {key: each[key] for key in ("minutes", "hardware", "describe")}
        for column in ("fid", "kid", "precision_inception", "recall_inception", "minutes", "images"):
            keys = [(f"{folder.name} | {share:g}", str(options.n)) for share in SHARES]
            rows[f"{name}: {column}"] = [results[key].get(column) if key in results else None for key in keys]
    shape = {"unit": "share of the time", "columns": [f"{share:g}" for share in SHARES], "images per FID": options.n}
    write_result(options.out, "speedrun", shape | {"runs": facts}, rows)
    curves = {
        name: ([*filter(None, rows[f"{name}: minutes"])], [*filter(None, rows[f"{name}: fid"])])
        for name in facts
        if name.startswith("mnist") and None not in rows[f"{name}: fid"]
    }
    ships = options.out == PAGE.parent / "results"
    if curves:
        n = f"FID of {options.n:,} images"
        save_curves((DOCS if ships else options.out) / "speedrun.png", curves, "minutes on two cores", n)
    if ships:
        write_tables(PAGE, options.out)
