"""What the changes from configs/cifar10.yaml to configs/cifar10_fast.yaml do to the images, after equally many were
seen: made one after the other to the quickstart's training, which is small enough to be repeated.
"""

import copy
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.curve import figures
from benchmarks.models import fit, read
from benchmarks.report import write

SEEDS = (0, 1, 2)
SEEN = (25_600, 51_200, 76_800)
DRAWN = 1024
Config = dict[str, Any]


def run(options: Namespace) -> None:
    """Every recipe under several seeds."""
    values: dict[str, list[list[float]]] = {}
    for name, config in recipes().items():
        found = [_figures(config, seed) for seed in SEEDS]
        values[name] = [list(each) for each in zip(*found, strict=True)]
    settings: dict[str, Any] = {"unit": "images seen", "columns": [f"{each:,}" for each in SEEN]}
    settings |= {"figure": "val/fd_digits", "images of each figure": DRAWN, "runs of each": len(SEEDS)}
    write(options.out, "recipes", settings, values)


def recipes() -> dict[str, Config]:
    """configs/digits.yaml under Ho's recipe, and with one thing more changed in each that follows."""
    config = read("digits")
    kept = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Evaluation"))]
    config["trainer"]["callbacks"] = kept
    config["model"]["init_args"]["schedule"] = {"class_path": "lightning_ddpm.diffusion.Linear"}
    _every(config, SEEN[0] // config["data"]["batch_size"])
    made = {"linear schedule, eps": config}
    for name, change in (
        ("cosine schedule", _cosine),
        ("v, with min-SNR weights", _velocity),
        ("four times the batch, twice the rate", _batch),
    ):
        config = copy.deepcopy(config)
        change(config)
        made[name] = config
    return made


def _every(config: Config, steps: int) -> None:
    """Evaluate after so many steps, as often as there are figures, and no more than that."""
    config["trainer"] |= {"max_steps": steps * len(SEEN), "val_check_interval": steps}
    _of(config, ".Evaluation").update(n=DRAWN, every_n_steps=steps)


def _of(config: Config, callback: str) -> dict[str, Any]:
    """That callback's arguments."""
    found: dict[str, Any]
    (found,) = [e["init_args"] for e in config["trainer"]["callbacks"] if e["class_path"].endswith(callback)]
    return found


def _cosine(config: Config) -> None:
    config["model"]["init_args"]["schedule"] = {"class_path": "lightning_ddpm.diffusion.Cosine"}


def _velocity(config: Config) -> None:
    weight = {"class_path": "lightning_ddpm.diffusion.MinSNR", "init_args": {"gamma": 5.0}}
    config["model"]["init_args"] |= {
        "parameterization": {"class_path": "lightning_ddpm.diffusion.Velocity"},
        "objective": {"class_path": "lightning_ddpm.diffusion.SimpleWeighted", "init_args": {"weight": weight}},
    }


def _batch(config: Config) -> None:
    """With warm-up and the average's memory as long as before, counted in images."""
    config["data"]["batch_size"] *= 4
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] *= 2
    config["model"]["init_args"]["lr_scheduler"]["init_args"]["total_iters"] //= 4
    _of(config, ".EMA")["decay"] **= 4
    _every(config, SEEN[0] // config["data"]["batch_size"])


def _figures(config: Config, seed: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        found = figures(fit(config | {"seed_everything": seed}, Path(folder)))
    (values,) = found["figures"].values()
    return [float(each) for each in values]
