"""Trainings of recipes by ``fit`` in a process of its own, which can be stopped and continued."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.models import read_config
from benchmarks.recipe_candidates import Recipe


def build_config(recipe: Recipe, steps: int, seed: int, options: Namespace) -> dict[str, Any]:
    """Return configs/mnist.yaml with the recipe, for a run of this many steps without validation."""
    config = read_config("mnist")
    decay = 1 - 1 / max(2.0, recipe.average * steps)
    callbacks = [
        {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": decay}},
        {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 100}},
    ]
    config["seed_everything"] = seed
    config["trainer"] |= {"max_steps": steps, "limit_val_batches": 0, "precision": options.precision}
    config["trainer"] |= {"callbacks": callbacks, "enable_progress_bar": False}
    config["data"] |= {"root": str(options.data), "batch_size": recipe.batch_size}
    model = config["model"]["init_args"]
    model["parameterization"] = {"class_path": f"lightning_ddpm.diffusion.{recipe.parameterization}"}
    model |= {"schedule": dict(recipe.schedule), "objective": dict(recipe.objective)}
    model["network"]["init_args"] |= dict(recipe.network)
    model["optimizer"]["init_args"] |= {"lr": recipe.lr, "betas": list(recipe.betas)}
    cycle = {"max_lr": recipe.lr, "total_steps": steps, "pct_start": recipe.warm_up, "anneal_strategy": recipe.anneal}
    cycle["cycle_momentum"] = recipe.cycle_momentum
    model["lr_scheduler"] = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": cycle}
    return config


def prepare_fit(config: dict[str, Any], folder: Path) -> list[str]:
    """Write the config beside the folder; return fit's words, which continue its run, or none if it is complete."""
    if read_step(folder) >= config["trainer"]["max_steps"]:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    config["trainer"]["default_root_dir"] = str(folder)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(file), *(["--ckpt_path", "last"] if read_step(folder) else [])]


def fit(config: dict[str, Any], folder: Path) -> None:
    """Train in a process of its own; continue the run that is in the folder, unless it is complete.

    Raises:
        SystemExit: fit failed, or was stopped before its last step.
    """
    words = prepare_fit(config, folder)
    if not words:
        return
    child = subprocess.Popen([sys.executable, "-m", "lightning_ddpm", *words])
    try:
        status = child.wait()
    except BaseException:
        child.terminate()  # fit saves and ends
        child.wait()
        raise
    if status or read_step(folder) < config["trainer"]["max_steps"]:
        sys.exit(f"fit ended with {status} after step {read_step(folder)} in {folder}; the same command continues")


def read_step(folder: Path) -> int:
    """Return the number of steps of the folder's run, 0 if there is none."""
    file = folder / "last.ckpt"
    return int(torch.load(file, weights_only=True)["global_step"]) if file.exists() else 0
