"""Measures image quality by training images seen: ``fit`` of a whole config, beside published FIDs."""

import sys
import tempfile
from argparse import Namespace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.models import read_config, run_fit
from benchmarks.report import write_result

TQCH = {5_990_400: 9.16, 11_980_800: 5.78, 23_936_000: 4.08, 53_888_000: 3.31, 101_888_000: 3.19}
"""FID on CIFAR-10 by training images seen, of 50,000 samples by 1000 steps: github.com/tqch/ddpm-torch, batch 128."""


def run(options: Namespace) -> None:
    """Train configs/cifar10_fast.yaml, or digits.yaml, for some minutes."""
    name = "cifar10_fast" if options.config == "cifar10" else options.config
    config = configure(name, options.data, options.weights_path)
    config["trainer"]["max_time"] = {"seconds": round(60 * options.minutes)}
    with tempfile.TemporaryDirectory() as folder:
        found = read_curves(run_fit(config, Path(folder)))
    if not found["step"]:
        sys.exit("the time was over before the first evaluation; increase --minutes")
    batch = config["data"]["batch_size"] * max(1, torch.cuda.device_count())
    seen = [step * batch for step in found["step"]]
    settings = {"config": name, "batch": batch, "unit": "images seen", "columns": [f"{each:,}" for each in seen]}
    settings |= {"images per evaluation": list_evaluations(config)[0]["init_args"]["n"]} | found["final"]
    rows = {"minutes": found["minutes"]} | found["metrics"]
    if options.config == "cifar10":
        rows["tqch/ddpm-torch, FID of 50,000"] = [interpolate_published(each) for each in seen]
    write_result(options.out, f"curve_{name}", settings, rows)


def configure(name: str, data: Path | None, weights_path: Path | None) -> dict[str, Any]:
    """Return a config that reads its images and Inception's weights from these places, where they are given."""
    config = read_config(name)
    for extractor in (each["init_args"]["extractor"] for each in list_evaluations(config)):
        if weights_path and extractor["class_path"].endswith(".Inception"):
            extractor["init_args"] = {"weights_path": str(weights_path)}
    if data:
        config["data"]["root"] = str(data)
        if name == "cifar10_fast" and not (data / "cifar-10-batches-py").is_dir():
            config["data"]["source"] = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"size": 32}}
    return config


def list_evaluations(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the evaluations among the callbacks of a config."""
    return [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith(".Evaluation")]


def read_curves(run: Path) -> dict[str, Any]:
    """Return a run's image metrics by step, the minutes at these steps, and the metrics after training.

    All are empty before the first evaluation.
    """
    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    names = [tag for tag in tags if tag.startswith(("val/fid", "val/fd_"))]
    points = events.Scalars(names[0]) if names else []
    return {
        "step": [each.step for each in points],
        "minutes": [(each.wall_time - events.FirstEventTimestamp()) / 60 for each in points],
        "metrics": {name: [each.value for each in events.Scalars(name)] for name in names},
        "final": {tag: round(events.Scalars(tag)[-1].value, 2) for tag in tags if tag.startswith("final/")},
    }


def interpolate_published(images: int) -> float | None:
    """Interpolate the published FID after this many images, linearly in both logarithms; ``None`` outside the data."""
    for (before, high), (after, low) in pairwise(TQCH.items()):
        if before <= images <= after:
            share = (log(images) - log(before)) / (log(after) - log(before))
            return exp(log(high) + share * (log(low) - log(high)))
    return None
