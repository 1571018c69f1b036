"""Trains the quickstart in bf16 and in float32 from the same random numbers, and compares the losses of every step."""

import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import read_config, run_fit
from benchmarks.report import write_result
from lightning_ddpm.networks.layers import GroupNorm

SEEDS, EVERY, N = (0, 1, 2), 200, 1024
FLOAT32 = "float32"
VARIANTS = {
    FLOAT32: ("32-true", None),
    "bf16-mixed": ("bf16-mixed", "input"),
    "bf16-mixed, GroupNorm in float32": ("bf16-mixed", "float32"),
}
"""Precision and type of GroupNorm of each variant."""


class InputNorm(GroupNorm):
    """GroupNorm in the input's type, as the package's computes on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class Float32Norm(GroupNorm):
    """GroupNorm in float32 from any input, as torch's autocast on a GPU makes of nn.GroupNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)


NORMS: dict[str | None, type[nn.GroupNorm]] = {"input": InputNorm, "float32": Float32Norm, None: GroupNorm}


class Losses(Callback):
    """Lets a run on the CPU normalise as a GPU would, and records the loss of every step.

    Args:
        norm: "input" or "float32", the type in which GroupNorm computes; ``None`` for the package's own on this device.
    """

    found: list[float] = []  # noqa: RUF012 of the last run

    def __init__(self, norm: str | None = None) -> None:
        self.norm = NORMS[norm]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        type(self).found = []
        for module in pl_module.modules():
            if isinstance(module, GroupNorm):
                module.__class__ = self.norm

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.found.append(float(outputs["loss"]))


def run(options: Namespace) -> None:
    """Train every variant with several seeds, and write what is complete after each seed."""
    runs: list[dict[str, dict[str, list[float]]]] = []
    for seed in SEEDS:
        runs.append({name: train(*variant, seed) for name, variant in VARIANTS.items()})
        columns = [f"{step:,}" for step in range(EVERY, len(runs[0][FLOAT32]["losses"]) + 1, EVERY)]
        settings: dict[str, Any] = {"unit": "steps", "columns": columns, "config": "digits", "seeds": len(runs)}
        settings |= {"images per evaluation": N}
        write_result(options.out, "precision_parity", settings, compare(runs))


def train(precision: str, norm: str | None, seed: int, steps: int | None = None) -> dict[str, list[float]]:
    """Train configs/digits.yaml; return the loss of every step, and the metrics of every ``EVERY`` steps."""
    config = read_config("digits")
    kept = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Evaluation"))]
    kept[-1]["init_args"].update(n=N, every_n_steps=EVERY)
    kept.append({"class_path": "benchmarks.precision_parity.Losses", "init_args": {"norm": norm}})
    config["trainer"] |= {"callbacks": kept, "precision": precision, "val_check_interval": EVERY, "accelerator": "cpu"}
    config["trainer"]["max_steps"] = steps or config["trainer"]["max_steps"]
    with tempfile.TemporaryDirectory() as folder:
        run = run_fit(config | {"seed_everything": seed}, Path(folder))
        events = EventAccumulator(str(run), {"scalars": 0})
        events.Reload()
        names = ("val/loss", "val/fd_digits")
        found = {
            name: [each.value for each in events.Scalars(name)] for name in names if name in events.Tags()["scalars"]
        }
    return {"losses": Losses.found, **found}


def compare(runs: list[dict[str, dict[str, list[float]]]]) -> dict[str, list[Any]]:
    """Return the rows of the table: means over the steps before each column, one value for each seed.

    Variants have the same images, timesteps and noise in every step, so that their losses differ by rounding alone.
    """
    rows = {}
    for name in VARIANTS:
        rows[f"train/loss, {name}"] = _average(runs, lambda run, name=name: run[name]["losses"])
    for name in list(VARIANTS)[1:]:
        rows[f"train/loss - float32's, per cent, {name}"] = _average(runs, partial(_subtract, name=name))
        rows[f"size of that in a step, per cent, {name}"] = _average(
            runs, lambda run, name=name: [abs(each) for each in _subtract(run, name)]
        )
    for metric in ("val/loss", "val/fd_digits"):
        for name in VARIANTS:
            rows[f"{metric}, {name}"] = [list(each) for each in zip(*(run[name][metric] for run in runs), strict=True)]
    return rows


def _subtract(run: dict[str, dict[str, list[float]]], name: str) -> list[float]:
    pairs = zip(run[name]["losses"], run[FLOAT32]["losses"], strict=True)
    return [100 * (one / other - 1) for one, other in pairs]


def _average(runs: list[Any], values: Any) -> list[list[float]]:
    """Return the mean of every ``EVERY`` values, for each run."""
    series = [values(run) for run in runs]
    return [[fmean(each[at : at + EVERY]) for each in series] for at in range(0, len(series[0]), EVERY)]
