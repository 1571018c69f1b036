"""How good the images are after so many were seen: ``fit`` of a whole config for so long, beside published figures."""

import sys
import tempfile
from argparse import Namespace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.models import fit, read
from benchmarks.report import write

TQCH = {5_990_400: 9.16, 11_980_800: 5.78, 23_936_000: 4.08, 53_888_000: 3.31, 101_888_000: 3.19}
"""FID on CIFAR-10 by images seen, of 50,000 images by 1000 steps: github.com/tqch/ddpm-torch, batches of 128."""


def run(options: Namespace) -> None:
    """configs/cifar10_fast.yaml, or digits.yaml, stopped by the clock."""
    name = "cifar10_fast" if options.config == "cifar10" else options.config
    config = read(name)
    judges = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith(".Evaluation")]
    for extractor in (each["init_args"]["extractor"] for each in judges):
        if options.weights_path and extractor["class_path"].endswith(".Inception"):
            extractor["init_args"] = {"weights_path": str(options.weights_path)}
    if options.data:
        config["data"]["root"] = str(options.data)
        if name == "cifar10_fast" and not (options.data / "cifar-10-batches-py").is_dir():
            config["data"]["source"] = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"size": 32}}
    config["trainer"]["max_time"] = {"seconds": round(60 * options.minutes)}
    with tempfile.TemporaryDirectory() as folder:
        found = figures(fit(config, Path(folder)))
    batch = config["data"]["batch_size"] * max(1, torch.cuda.device_count())
    seen = [step * batch for step in found["step"]]
    settings = {"config": name, "batch": batch, "unit": "images seen", "columns": [f"{each:,}" for each in seen]}
    settings |= {"images of each figure": judges[0]["init_args"]["n"]} | found["final"]
    rows = {"minutes": found["minutes"]} | found["figures"]
    if options.config == "cifar10":
        rows["tqch/ddpm-torch, FID of 50,000"] = [published(each) for each in seen]
    write(options.out, f"curve_{name}", settings, rows)


def figures(run: Path) -> dict[str, Any]:
    """What a run's curves say of its images: at which steps, after how many minutes, and at the end."""
    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    names = [tag for tag in tags if tag.startswith(("val/fid", "val/fd_"))]
    if not names:
        sys.exit("not one evaluation before the time was over; give --minutes more")
    points = events.Scalars(names[0])
    began = events.FirstEventTimestamp()
    return {
        "step": [each.step for each in points],
        "minutes": [(each.wall_time - began) / 60 for each in points],
        "figures": {name: [each.value for each in events.Scalars(name)] for name in names},
        "final": {tag: round(events.Scalars(tag)[-1].value, 2) for tag in tags if tag.startswith("final/")},
    }


def published(images: int) -> float | None:
    """The published figure after so many images, on the straight line of both logarithms between its neighbours;
    ``None`` where there are none.
    """
    for (before, high), (after, low) in pairwise(TQCH.items()):
        if before <= images <= after:
            share = (log(images) - log(before)) / (log(after) - log(before))
            return exp(log(high) + share * (log(low) - log(high)))
    return None
