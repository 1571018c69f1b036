"""Counts what a step does on a GPU, without one: operations, bytes, conversions, layouts, reads and exchanges.

The step runs on the CPU, on two images and on four, with the types and layouts that a GPU's kernels would have; every
number of bytes is linear in the images, so that these two give it for any batch. Attention is one operation, as there.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import write_result
from benchmarks.training import write_noise_images

HERE = Path(__file__).parent
BATCH = 128
COLUMNS = {
    "operations": "operations",
    "bytes": "GB read and written",
    "conversions": "type conversions",
    "activations": "of them, of activations",
    "layouts": "layout changes",
    "nchw": "bf16 convolutions without channels_last",
    "reads": "values read by the host",
    "exchanges": "exchanges of two ranks",
}
VARIANTS = {
    "float32": ("32-true", []),
    "bf16-mixed": ("bf16-mixed", []),
    "bf16-mixed, ChannelsLast": ("bf16-mixed", ["lightning_ddpm.callbacks.ChannelsLast"]),
}
"""Precision and callbacks of each variant; what Compile fuses is not counted."""


def run(options: Namespace) -> None:
    """Count for this tree and, with ``--tree``, for another checkout of the repository before it."""
    trees = {_name_tree(each): each for each in (options.tree, HERE.parent) if each}
    rows: dict[str, list[float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = write_noise_images(Path(folder), 64, 3, 32)
        for name, tree in trees.items():
            exchanges = count_exchanges(tree, images, Path(folder))
            for variant, (precision, callbacks) in VARIANTS.items():
                found = [count_step(tree, images, Path(folder), n, precision, callbacks) for n in (2, 4)]
                for what, few in found[0].items():
                    where = "a training step" if what == "train" else f"a step of {what}, beside the network"
                    if what != "train" and callbacks:
                        continue  # as without them
                    many = found[1][what]
                    # the smaller one: a progress line may have read the loss
                    scaled: dict[str, float] = {key: min(few[key], many[key]) for key in few}
                    scaled["bytes"] = scale(few["bytes"], many["bytes"]) / 1e9
                    scaled["exchanges"] = exchanges if what == "train" else 0
                    rows[f"{name}: {where}, {variant}"] = [scaled[key] for key in COLUMNS]
    settings = {"unit": f"batch {BATCH}", "columns": [*COLUMNS.values()], "model": "Ho's of CIFAR-10"}
    write_result(options.out, "counts", settings, rows)


def scale(two: float, four: float) -> float:
    """Return the bytes of ``BATCH`` images by those of two and of four."""
    return two + (four - two) / 2 * (BATCH - 2)


def count_step(
    tree: Path, images: Path, folder: Path, batch_size: int, precision: str, callbacks: list[str], **network: int
) -> dict[str, dict[str, float]]:
    """Return the counts of a step of ``fit`` in a checkout, and of its samplers."""
    settings = make_config(tree, images, batch_size, callbacks, **network)
    settings["trainer"] |= {"precision": precision, "max_steps": 4}
    return run_fit(tree, settings, folder, "operations.Counter")


def count_exchanges(tree: Path, images: Path, folder: Path) -> float:
    """Return how many operations of torch.distributed a step on two ranks calls; the network is a narrow one."""
    settings = make_config(tree, images, 2, [], width=8, groups=4)
    settings["trainer"] |= {"devices": 2, "strategy": "ddp", "max_steps": 8}
    counts = run_fit(tree, settings, folder, "operations.Exchanges")
    return sum(count for key, count in counts.items() if "wait" not in key)


def make_config(tree: Path, images: Path, batch_size: int, callbacks: list[str], **network: int) -> dict[str, Any]:
    """Return the checkout's own configs/cifar10.yaml, with EMA and checkpoints, for these images and callbacks.

    ``network`` changes arguments of its network.
    """
    settings: dict[str, Any] = yaml.safe_load((tree / "configs" / "cifar10.yaml").read_text())
    kept = [each for each in settings["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Checkpoints"))]
    for each in kept:
        each["init_args"].pop("monitor", None)
    added = [{"class_path": each} for each in callbacks]
    more = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "accelerator": "cpu", "log_every_n_steps": 1000}
    settings["trainer"] |= {"callbacks": [*added, *kept], "precision": "32-true", **more}
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"channels": 3, "size": 32}}
    settings["model"]["init_args"]["network"]["init_args"] |= network
    settings["data"] = {"source": source, "root": str(images), "batch_size": batch_size, "flip": True}
    return settings


def run_fit(tree: Path, settings: dict[str, Any], folder: Path, callback: str) -> Any:
    """Run ``fit`` of a checkout with a callback of benchmarks/operations.py, and return what that wrote."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        out, config = Path(run) / "counts.json", Path(run) / "config.yaml"
        settings["trainer"]["default_root_dir"] = str(Path(run) / "run")
        settings["trainer"]["callbacks"].append({"class_path": callback, "init_args": {"out": str(out)}})
        config.write_text(yaml.safe_dump(settings))
        words = [sys.executable, "-m", "lightning_ddpm", "fit", "--config", str(config)]
        environment = os.environ | {"PYTHONPATH": f"{tree.resolve()}{os.pathsep}{HERE}"}
        subprocess.run(words, check=True, cwd=run, env=environment)
        return json.loads(out.read_text())


def _name_tree(tree: Path) -> str:
    if tree == HERE.parent:
        return "now"
    words = ["git", "-C", str(tree), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
