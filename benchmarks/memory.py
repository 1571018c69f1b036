"""Measures the memory of a long run: resident set and GPU memory after every thousand steps of ``fit``."""

import resource
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.models import read_config, run_fit
from benchmarks.report import write_result

STEPS, EVERY = 10_000, 1000


def run(options: Namespace) -> None:
    """Train configs/digits.yaml with a narrow network; validate, sample and evaluate every thousand steps."""
    config = read_config("digits")
    config["model"]["init_args"]["network"]["init_args"].update(width=8, groups=4)
    for each in config["trainer"]["callbacks"]:
        each["init_args"] = {name: EVERY if "every" in name else value for name, value in each["init_args"].items()}
    config["trainer"]["callbacks"].append(
        {"class_path": "benchmarks.memory.Memory", "init_args": {"out": str(options.out)}}
    )
    config["trainer"].update(max_steps=STEPS, val_check_interval=EVERY)
    with tempfile.TemporaryDirectory() as folder:
        run_fit(config, Path(folder))


class Memory(Callback):
    """Records the memory and writes the result at the end.

    Args:
        out: folder of the results.
    """

    def __init__(self, out: str) -> None:
        self.out, self.megabytes = Path(out), dict[str, list[float]]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % EVERY:
            return
        note = self.megabytes.setdefault
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        note("resident, MB", []).append(pages * resource.getpagesize() / 1e6)
        if torch.cuda.is_available():
            note("GPU peak, MB", []).append(torch.cuda.max_memory_allocated() / 1e6)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        columns = [f"{step:,}" for step in range(EVERY, STEPS + 1, EVERY)]
        write_result(self.out, "memory", {"unit": "steps", "columns": columns}, self.megabytes)
