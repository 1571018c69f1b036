"""Measures the changes from configs/cifar10.yaml to cifar10_fast.yaml on the quickstart's model, which is small enough.

Each recipe adds one change to the one before; all are compared after equally many training images.
"""

import copy
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.curve import read_curves
from benchmarks.models import read_config, run_fit
from benchmarks.report import write_result

SEEDS = (0, 1, 2)
SEEN = (25_600, 51_200, 76_800)
N = 1024
Config = dict[str, Any]


def run(options: Namespace) -> None:
    """Train every recipe with several seeds."""
    values: dict[str, list[list[float]]] = {}
    for name, config in make_recipes().items():
        found = [_train(config, seed) for seed in SEEDS]
        values[name] = [list(each) for each in zip(*found, strict=True)]
    settings: dict[str, Any] = {"unit": "images seen", "columns": [f"{each:,}" for each in SEEN]}
    settings |= {"metric": "val/fd_digits", "images per evaluation": N, "seeds": len(SEEDS)}
    write_result(options.out, "recipes", settings, values)


def make_recipes() -> dict[str, Config]:
    """Return configs/digits.yaml with Ho et al.'s recipe, followed by configs with one more change each."""
    config = read_config("digits")
    kept = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Evaluation"))]
    config["trainer"]["callbacks"] = kept
    config["model"]["init_args"]["schedule"] = {"class_path": "lightning_ddpm.diffusion.Linear"}
    _set_interval(config, SEEN[0] // config["data"]["batch_size"])
    made = {"linear schedule, eps": config}
    for name, change in (
        ("cosine schedule", _use_cosine),
        ("v, with min-SNR weights", _use_velocity),
        ("four times the batch, twice the learning rate", _enlarge_batch),
    ):
        config = copy.deepcopy(config)
        change(config)
        made[name] = config
    return made


def _set_interval(config: Config, steps: int) -> None:
    """Evaluate every ``steps`` steps, and train no longer than that takes."""
    config["trainer"] |= {"max_steps": steps * len(SEEN), "val_check_interval": steps}
    _get_arguments(config, ".Evaluation").update(n=N, every_n_steps=steps)


def _get_arguments(config: Config, callback: str) -> dict[str, Any]:
    """Return the arguments of a callback."""
    found: dict[str, Any]
    (found,) = [e["init_args"] for e in config["trainer"]["callbacks"] if e["class_path"].endswith(callback)]
    return found


def _use_cosine(config: Config) -> None:
    config["model"]["init_args"]["schedule"] = {"class_path": "lightning_ddpm.diffusion.Cosine"}


def _use_velocity(config: Config) -> None:
    weight = {"class_path": "lightning_ddpm.diffusion.MinSNR", "init_args": {"gamma": 5.0}}
    config["model"]["init_args"] |= {
        "parameterization": {"class_path": "lightning_ddpm.diffusion.Velocity"},
        "objective": {"class_path": "lightning_ddpm.diffusion.SimpleWeighted", "init_args": {"weight": weight}},
    }


def _enlarge_batch(config: Config) -> None:
    """Enlarge the batch, with warm-up and the half-life of the EMA unchanged in images."""
    config["data"]["batch_size"] *= 4
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] *= 2
    config["model"]["init_args"]["lr_scheduler"]["init_args"]["total_iters"] //= 4
    _get_arguments(config, ".EMA")["decay"] **= 4
    _set_interval(config, SEEN[0] // config["data"]["batch_size"])


def _train(config: Config, seed: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        found = read_curves(run_fit(config | {"seed_everything": seed}, Path(folder)))
    (values,) = found["metrics"].values()
    return [float(each) for each in values]
