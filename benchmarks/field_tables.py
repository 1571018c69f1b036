"""Makes the tables and the image of docs/results/fields.md: a Gaussian random field of which everything is known.

    python -m benchmarks field_tables gaussian --steps 2000
    python -m benchmarks field_tables conditional --steps 1000
    python -m benchmarks field_tables report

The data are periodic fields of 48x64 with two correlated channels of known spectra, float32, in one .npy file. One
model is trained on them alone, the other on fields with a mean of their own in each channel, which it is given. A
folder holds all that is done: stop it by Ctrl-C or SIGTERM, and the same command continues.
"""

import csv
import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.field_metrics import measure_conditional, measure_gaussian
from benchmarks.field_report import write_report
from benchmarks.gaussian_field import GaussianField
from benchmarks.recipe_runs import fit

FIELDS, HELD_OUT = 20_000, 400
CHUNK = 500
"""Fields that are made at a time."""
LARGEST = 1.5
"""The given means are uniform between plus and minus this."""
COLUMNS = ["first", "second"]


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("task", choices=["gaussian", "conditional", "report"], help="which model, or the page")
    parser.add_argument("--steps", type=int, default=2000, help="steps of 16 fields")
    parser.add_argument("--fields", type=int, default=FIELDS, help="number of fields to train on")
    parser.add_argument("--n", type=int, default=512, help="number of samples")
    parser.add_argument("--likelihoods", type=int, default=16, help="held-out fields whose likelihood is computed")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/field_tables"), help="data, runs and results")


def run(options: Namespace) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "LIGHTNING_DDPM_TRUST": "benchmarks"}
    torch.set_num_threads(1)
    if options.task == "report":
        write_report(options.folder)
        return
    folder, conditional = options.folder / options.task, options.task == "conditional"
    data = options.folder / f"{options.task}_data"
    write_fields(data, options.fields, conditional)
    fit(build_config(data, options.steps, conditional), folder)
    result = folder / "result.json"
    if not result.exists():
        measured = (measure_conditional if conditional else measure_gaussian)(folder, data, options)
        measured |= {"steps": options.steps, "fields": options.fields}
        result.write_text(json.dumps(measured, indent=1))
    print(result.read_text())


def write_fields(folder: Path, n: int, conditional: bool) -> None:
    """Write n fields to train on and the held-out ones, and the means that are added to them, unless they are there."""
    if (folder / "conditions.csv").exists() or (not conditional and (folder / "test.npy").exists()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    field, generator = GaussianField(), torch.Generator().manual_seed(int(conditional))
    counts = {"train.npy": n + HELD_OUT} if conditional else {"train.npy": n, "test.npy": HELD_OUT}
    rows: list[list[float]] = []
    for name, count in counts.items():
        array = np.lib.format.open_memmap(folder / f".{name}", "w+", np.float32, (count, 2, field.height, field.width))
        for start in range(0, count, CHUNK):
            fields = field.sample(min(CHUNK, count - start), generator)
            if conditional:
                means = (LARGEST * (2 * torch.rand(len(fields), 2, generator=generator) - 1)).float()
                fields = fields + means[:, :, None, None]
                rows += means.tolist()
            array[start : start + len(fields)] = fields.numpy()
        array.flush()
        (folder / f".{name}").rename(folder / name)
    if conditional:
        with (folder / "conditions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


def build_config(data: Path, steps: int, conditional: bool) -> dict[str, Any]:
    """Return the config of a run."""
    network: dict[str, Any] = {"class_path": "benchmarks.periodic_unet.PeriodicUNet", "init_args": {}}
    source: dict[str, Any] = {
        "class_path": "lightning_ddpm.data.ArrayFile",
        "init_args": {"mean": 0.0, "std": 1.0, "held_out_file": "test.npy"},
    }
    if conditional:
        embedding = {"class_path": "lightning_ddpm.networks.VectorEmbedding", "init_args": {"names": COLUMNS}}
        network["init_args"] = {"conditions": [embedding]}
        source["init_args"] |= {"held_out_file": None, "holdout": 0.02}
        source = {"class_path": "lightning_ddpm.data.Described", "init_args": {"source": source, "vector": COLUMNS}}
    return build_training(network, source, data, steps)


def build_training(network: dict[str, Any], source: dict[str, Any], data: Path, steps: int) -> dict[str, Any]:
    """Return the config of a run of this many steps of 16 images, which predicts v on the cosine schedule."""
    warm_up = max(1, min(100, steps // 10))
    model = {
        "network": network,
        "schedule": {"class_path": "lightning_ddpm.diffusion.Cosine", "init_args": {"steps": 1000}},
        "parameterization": {"class_path": "lightning_ddpm.diffusion.Velocity"},
        "sampler": {"class_path": "lightning_ddpm.diffusion.DPMSolverPP", "init_args": {"steps": 50}},
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.002, "fused": True}},
        "lr_scheduler": {
            "class_path": "lightning_ddpm.models.learning_rate.WarmUp",
            "init_args": {"steps": warm_up, "decay": "cosine"},
        },
    }
    callbacks = [
        {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": 1 - 1 / max(2, steps // 20)}},
        {"class_path": "benchmarks.cpu_time.CPUTime"},
        {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 100}},
    ]
    trainer = {"max_steps": steps, "accelerator": "cpu", "precision": "32-true", "limit_val_batches": 0}
    trainer |= {"enable_progress_bar": False, "log_every_n_steps": 20, "gradient_clip_val": 1.0}
    return {
        "seed_everything": 0,
        "trainer": trainer | {"callbacks": callbacks},
        "model": {"class_path": "lightning_ddpm.models.ddpm.DDPM", "init_args": model},
        "data": {"source": source, "root": str(data), "batch_size": 16, "num_workers": 0},
    }
