"""Makes the tables and the image of docs/results/families.md: VAE, GAN, flow and DDPM at equal CPU time.

    python -m benchmarks family_tables digits                    # half an hour on one idle core
    python -m benchmarks family_tables mnist --minutes 10 --data data
    python -m benchmarks family_tables report

The CPU time of a training step is measured for each family (time.process_time on one thread, the median of 30 steps)
and gives the number of steps that takes ``--minutes``, the same for all seeds. What other processes do changes the wall
time, and the CPU time little; the checkpoints record the CPU time that a run then took. Besides three seeds, each
family is trained once at four times its learning rate. Metrics compare N generated images with the training images, and
the time of sampling is CPU time, too. A folder holds all that is done: stop it by Ctrl-C or SIGTERM, and the same
command continues. ``--families`` lets several processes share the work of a folder.
"""

import json
import os
import statistics
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.cpu_time import read_seconds
from benchmarks.family_metrics import SAMPLED, SHOWN, measure, open_data
from benchmarks.models import CONFIGS, read_config
from benchmarks.page import DOCS, PAGES, format_table, save_image_grid, write_table
from benchmarks.recipe_runs import prepare_fit, read_step
from lightning_ddpm.commands.main import main
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.metrics import ClassifierFeatures, DigitsFeatures, FeatureExtractor

FAMILIES = {"vae": "VAE", "gan": "GAN", "flow": "flow", "ddpm": "DDPM"}
SEEDS = 3
PROBE_STEPS, PROBED = 40, 30
RATE = 4
"""The learning rate of the additional run, in units of the family's."""
MNIST = {"vae": {"width": 32}, "gan": {"width": 28}, "flow": {"width": 128, "steps": 9}}
"""What 28x28 images change; DDPM is that of configs/mnist.yaml."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("task", choices=["digits", "mnist", "report"], help="which data, or the page")
    parser.add_argument("--minutes", type=float, default=1.0, help="CPU time of each training")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES], help="which to train")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/family_tables"), help="runs and results")


def run(options: Namespace) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "LIGHTNING_DDPM_TRUST": "examples"}
    torch.set_num_threads(1)
    if options.task == "report":
        write_report(options)
        return
    extractor = load_extractor(options)
    runs = [*((f"seed{each}", each, 1) for each in range(SEEDS)), (f"rate{RATE}", 0, RATE)]
    for name, seed, rate in runs:
        for family in options.families:
            folder = options.folder / options.task / family / name
            result = folder / "result.json"
            if result.exists():
                continue
            steps = count_steps(family, options)
            fit(build_config(family, seed, steps, rate, options), folder)
            measured = measure(folder, extractor)
            result.write_text(json.dumps(measured, indent=1))
            print(options.task, family, name, measured, flush=True)


def build_config(family: str, seed: int, steps: int, rate: float, options: Namespace) -> dict[str, Any]:
    """Return the family's config for a run without validation and evaluation, at a multiple of its learning rate."""
    config = yaml.safe_load((CONFIGS.parent / "examples" / "families" / f"{family}.yaml").read_text())
    model = config["model"]["init_args"]
    if options.task == "mnist":
        config["data"] = read_config("mnist")["data"] | {"root": str(options.data)}
        if family == "ddpm":
            model |= read_config("mnist")["model"]["init_args"]
            model["lr_scheduler"]["init_args"] = {"max_lr": rate * 1e-3, "total_steps": steps}
        else:
            model |= {"size": 28} | MNIST[family]
    adam = {"lr": rate * 1e-3, "fused": True} | ({"betas": [0.0, 0.99]} if family == "gan" else {})
    model["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": adam}
    config["seed_everything"] = seed
    config["trainer"] |= {
        "max_steps": steps,
        "limit_val_batches": 0,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }
    config["trainer"]["callbacks"] = [
        {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": 0.995}},
        {"class_path": "benchmarks.cpu_time.CPUTime"},
        {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 100}},
    ]
    return config


def fit(config: dict[str, Any], folder: Path) -> None:
    """Train in this process; continue the run that is in the folder, unless it is complete.

    Raises:
        SystemExit: fit failed, or was stopped before its last step.
    """
    words = prepare_fit(config, folder)
    if words and (main(words) or read_step(folder) < config["trainer"]["max_steps"]):
        sys.exit(f"fit ended after step {read_step(folder)} in {folder}; the same command continues")


def count_steps(family: str, options: Namespace) -> int:
    """Return how many steps take the minutes, from a short run that is trained first if it is missing."""
    folder = options.folder / options.task / family / "probe"
    fit(build_config(family, 0, PROBE_STEPS, 1, options), folder)
    return round(60 * options.minutes / statistics.median(read_seconds(folder)[-PROBED:]))


def load_extractor(options: Namespace) -> FeatureExtractor:
    """Return the feature network; MNIST's is trained first if it is missing."""
    extractor: FeatureExtractor = DigitsFeatures()
    if options.task == "mnist":
        config = read_config("mnist_features")
        config["data"]["root"] = str(options.data)
        fit(config, options.folder / "features")
        extractor = ClassifierFeatures(str(options.folder / "features" / "last.ckpt"), "mnist")
    extractor.load()
    return extractor


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "steps": ("steps", lambda value: f"{value:,.0f}"),
    "distance": ("Fréchet distance", lambda value: f"{value:.1f}"),
    "precision": ("precision", lambda value: f"{value:.2f}"),
    "recall": ("recall", lambda value: f"{value:.2f}"),
    "bits": ("bits/dim", lambda value: f"{value:.2f}"),
    "memorisation": ("memorisation", lambda value: f"{value:.3f}"),
    "sampling": (f"CPU s for {SAMPLED} images", lambda value: f"{value:.3g}"),
    "reconstruction": ("error of reconstruction", lambda value: f"{value:.2g}"),
}


def write_report(options: Namespace) -> None:
    """Write the tables of all finished runs, and the image of their samples."""
    images: dict[tuple[str, str], Tensor] = {}
    for what in ("digits", "mnist"):
        rows = []
        for family, title in FAMILIES.items():
            files = [options.folder / what / family / f"seed{each}" / "result.json" for each in range(SEEDS)]
            results = [json.loads(each.read_text()) for each in files if each.exists()]
            if not results:
                continue
            other = options.folder / what / family / f"rate{RATE}" / "result.json"
            faster = f"{json.loads(other.read_text())['distance']:.1f}" if other.exists() else ""
            rows.append([title, str(len(results)), *(format_column(results, name) for name in COLUMNS), faster])
            samples = torch.load(files[0].parent / "images.pt", weights_only=True)
            if (what, "training images") not in images:
                train = open_data(files[0].parent)[0]
                images[what, "training images"] = plot(train.__getitems__(spread_indices(SHOWN, len(train)))[0])
            images[what, title] = plot(samples)
        if rows:
            titles = [title for title, _ in COLUMNS.values()]
            columns = ["family", "runs", *titles, f"distance at {RATE} x the rate"]
            write_table(PAGES / "families.md", what, format_table(columns, rows))
    save_image_grid(DOCS / "families.png", images, cell=(2.2, 2.2), dpi=100)


def format_column(results: list[dict[str, Any]], name: str) -> str:
    """Return the mean over the seeds, and their standard deviation where there are several values."""
    values, form = [each[name] for each in results if name in each], COLUMNS[name][1]
    if not values:
        return "none"
    deviation = f" ± {form(statistics.stdev(values))}" if len({*values}) > 1 else ""
    return form(statistics.mean(values)) + deviation


def plot(images: Tensor) -> Tensor:
    """Return a grid (h, w, 3) of images."""
    return arrange_grid(images, columns=round(len(images) ** 0.5)).permute(1, 2, 0)
