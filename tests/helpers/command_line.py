"""Helpers for the command line: tiny configs, and processes that cannot outlive their test."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from helpers.forked_program import run_forked

REPOSITORY = Path(__file__).parent.parent.parent
TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
"""Options of fit for two ranks on the CPU."""
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def run(*command: object, seconds: float = 240, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository until it and all its children have ended; kill all of them at the timeout."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=REPOSITORY,
        env=get_variables(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)  # a child left behind would keep the pipes open
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{command} had not ended after {seconds} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def get_variables(environment: Mapping[str, object]) -> dict[str, str]:
    """Return this process's environment with some variables changed."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    variables.pop("PL_GLOBAL_SEED", None)  # a test that trained in this process may have set it
    return variables


def ddpm(*arguments: object, seconds: float = 240, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m lightning_ddpm`` in another process, which is forked from one that has imported it."""
    variables = get_variables(environment)
    return run_forked([str(word) for word in arguments], REPOSITORY, variables, seconds)


def read_yaml(path: Path) -> Any:
    """Read a config as plain data."""
    return yaml.safe_load(path.read_text())


def write_yaml(path: Path, config: Any) -> Path:
    """Write plain data as a config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def callback(config: Any, name: str) -> Any:
    """Return the arguments of one of the config's callbacks."""
    return next(each["init_args"] for each in config["trainer"]["callbacks"] if each["class_path"].endswith(f".{name}"))


def tiny_digits(folder: Path) -> Any:
    """Return configs/digits.yaml with its callbacks, reduced to four steps on the CPU, for a run in ``folder``."""
    config = read_yaml(REPOSITORY / "configs" / "digits.yaml")
    config["trainer"].update(
        default_root_dir=str(folder), accelerator="cpu", max_steps=4, val_check_interval=2, log_every_n_steps=1
    )
    callback(config, "EMA").update(decay=0.9)
    callback(config, "Evaluation").update(n=65, every_n_steps=2, batch_size=16)
    callback(config, "Evaluation")["sampler"]["init_args"].update(steps=2)
    callback(config, "Memorisation").update(n=20, batch_size=16)
    callback(config, "Memorisation")["sampler"]["init_args"].update(steps=2)
    callback(config, "SampleGrid").update(n=4, every_n_steps=2)
    callback(config, "Checkpoints").update(every_n_steps=2)
    model = config["model"]["init_args"]
    model["network"]["init_args"].update(width=8, groups=4)
    model["schedule"]["init_args"].update(steps=20)
    model["sampler"]["init_args"].update(steps=5)
    model["optimizer"]["init_args"].update(lr=0.01)
    model["lr_scheduler"]["init_args"].update(start_factor=0.5, total_iters=2)
    config["data"].update(batch_size=16)
    return config


def small_arrays(folder: Path) -> Any:
    """Return configs/arrays.yaml with a small network, two steps and a grid, for a run in ``folder``."""
    config = read_yaml(REPOSITORY / "configs" / "arrays.yaml")
    config["trainer"].update(default_root_dir=str(folder), accelerator="cpu", precision="32-true", max_steps=2)
    config["trainer"].update(log_every_n_steps=1, val_check_interval=2)
    keep = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith(("Grid", "Checkpoints"))]
    keep[0]["init_args"].update(n=4, every_n_steps=2, sampler={"class_path": "DDIM", "init_args": {"steps": 2}})
    config["trainer"]["callbacks"] = keep
    model = config["model"]["init_args"]
    model["network"]["init_args"].update(width=8, groups=4, blocks=1)
    model["schedule"]["init_args"].update(steps=10)
    config["data"].update(batch_size=8, num_workers=0)
    config["data"]["source"]["init_args"] = {"holdout": 0.1}
    return config
