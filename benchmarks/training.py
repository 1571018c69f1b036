"""Times a training step of ``fit`` and, in its pauses, the same step of other implementations.

The whole program runs, with EMA, logging and clipping. A callback stops the clock after every few steps and lets the
other contenders take as many, so that all are measured in turn, on the same data and, where the network is the same,
from the same weights.
"""

import copy
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.loops import DIFFUSERS, FLOOR, PYTORCH, Block, make_block
from benchmarks.models import SHAPES, describe_variant, get_network_arguments
from benchmarks.report import alternate_order, measure_in_subprocess, synchronize, write_result
from lightning_ddpm.data.image_io import save_image, to_float
from lightning_ddpm.models.ddpm import DDPM

IMAGES = 2048
OURS = "fit"


def run(options: Namespace) -> None:
    """Measure the memory of each contender in a process of its own, then run fit with the callback of this module."""
    size, channels, default = SHAPES[options.config]
    batch_size = options.batch_size or default
    steps = 1 if options.config == "cifar10" else 3
    with tempfile.TemporaryDirectory() as folder:
        images = write_noise_images(Path(folder), IMAGES, channels, size)
        others = [FLOOR, DIFFUSERS, *([PYTORCH] if batch_size >= 16 else [])]  # its minimum
        where = {"config": options.config, "images": str(images), "batch_size": batch_size}
        where |= {"precision": options.precision, "callbacks": list_callbacks(options)}
        peaks = {who: [measure_in_subprocess("step", who=who, **where)["megabytes"]] for who in (OURS, *others)}
        settings = {"rounds": options.rounds, "steps": steps, "images": str(images), "others": others}
        settings |= {
            "out": str(options.out),
            "name": f"{options.config}{describe_variant(options)}",
            "megabytes": peaks,
        }
        turns = {"class_path": "benchmarks.training.TurnsCallback", "init_args": settings}
        fit_images(callback=turns, **where | {"images": images})


def list_callbacks(options: Namespace) -> list[str]:
    """Return the callbacks that the options request."""
    requested = {
        "lightning_ddpm.callbacks.ChannelsLast": options.channels_last,
        "lightning_ddpm.callbacks.Compile": options.compile,
    }
    return [name for name, on in requested.items() if on]


def fit_images(
    config: str,
    images: Path,
    batch_size: int,
    callback: dict[str, Any],
    steps: int = 10**6,
    size: int | None = None,
    precision: str = "32-true",
    callbacks: Sequence[str] = (),
) -> None:
    """Run the program's own fit, with EMA, clipping, logging and these callbacks, in a temporary folder."""
    settings = models.read_config(config)
    kept = [each for each in settings["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Checkpoints"))]
    for each in kept:
        each["init_args"].pop("monitor", None)
    added = [{"class_path": each} for each in callbacks]
    settings["trainer"].update(
        callbacks=[*added, *kept, callback], precision=precision, limit_val_batches=0, max_steps=steps
    )
    arguments = get_network_arguments(config, size)
    shape = {name: arguments[name] for name in ("channels", "size")}
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": shape}
    settings["model"]["init_args"]["network"]["init_args"] = arguments
    settings["data"] = {"source": source, "root": str(images), "batch_size": batch_size, "num_workers": 0}
    with tempfile.TemporaryDirectory() as folder:
        models.run_fit(settings, Path(folder))


def write_noise_images(folder: Path, n: int, channels: int, size: int) -> Path:
    """Write n images of noise into a new folder and return it."""
    images = folder / "images"
    images.mkdir(parents=True)
    for index in range(n):
        noise = torch.Generator().manual_seed(index)
        save_image(
            torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=noise), images / f"{index}.png"
        )
    return images


class TurnsCallback(Callback):
    """Measures its own run, and the other contenders in the run's pauses.

    Args:
        rounds: measurements of each contender, after one warm-up round.
        steps: training steps of each contender per round.
        images: folder of the dataset.
        others: names of the other contenders.
        out: folder of the results.
        name: name of the config and variant.
        megabytes: peak memory of each contender, measured before.
    """

    def __init__(
        self,
        rounds: int,
        steps: int,
        images: str,
        others: list[str],
        out: str,
        name: str,
        megabytes: dict[str, list[float]],
    ) -> None:
        self.rounds, self.steps, self.name, self.names = rounds, steps, name, others
        self.images, self.out, self.megabytes = Path(images), Path(out), megabytes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DDPM)
        batches = iterate_batches(trainer.train_dataloader, pl_module.device)
        self.size = len(next(batches)[0])
        precision = str(trainer.precision)
        self.others = {
            name: make_block(name, pl_module, batches, self.images, self.size, precision) for name in self.names
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in (OURS, *self.others)}
        self.steps_done, self.flops = 0, count_flops(pl_module, self.size)
        synchronize()
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps_done += 1
        if self.steps_done % self.steps:
            return
        synchronize()
        self.seconds[OURS].append((time.perf_counter() - self.started) / self.steps)
        for name, block in alternate_order(self.others, len(self.seconds[OURS])):
            self.seconds[name].append(_time_block(block, self.steps))
        if len(self.seconds[OURS]) == self.rounds + 1:
            self._report(pl_module, str(trainer.precision))
            trainer.should_stop = True
        synchronize()
        self.started = time.perf_counter()

    def _report(self, module: LightningModule, precision: str) -> None:
        counted = {name: seconds[1:] for name, seconds in self.seconds.items()}
        best = min(counted[OURS])
        kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        peak = measure_peak_flops(module.device, kind)
        settings = {
            "batch": self.size,
            "images": self.size,
            "parameters": f"{sum(each.numel() for each in module.parameters()):,}",
            "rounds": self.rounds,
            "steps per round": self.steps,
            "GFLOP per step": round(self.flops / 1e9),
            f"GFLOP/s of a {str(kind).removeprefix('torch.')} matrix product": round(peak / 1e9),
            "share of it in fit's fastest round": f"{self.flops / best / peak:.2f}",
        }
        write_result(self.out, f"training_{self.name}", settings, counted, self.megabytes)


def _time_block(block: Block, steps: int) -> float:
    synchronize()
    started = time.perf_counter()
    block(steps)
    synchronize()
    return (time.perf_counter() - started) / steps


def iterate_batches(loader: Any, where: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the run's own batches without end, as the training step gets them."""
    for _ in count():
        for x, label in loader:
            yield to_float(x.to(where)), label.to(where)


def count_flops(module: DDPM, n: int) -> int:
    """Count the floating-point operations of a training step's forward and backward pass, by torch's counter."""
    network = copy.deepcopy(module.network)
    x, t = (
        torch.randn(n, *module.image_shape, device=module.device),
        torch.ones(n, dtype=torch.long, device=module.device),
    )
    with FlopCounterMode(display=False) as counter:
        network(x, t).square().mean().backward()
    return int(counter.get_total_flops())


def measure_peak_flops(where: torch.device, kind: torch.dtype, times: int = 5) -> float:
    """Measure the FLOP/s of a product of two square matrices of this dtype, the best of ``times``."""
    size = 2048 if where.type == "cpu" else 8192  # large enough to fill a GPU
    a = torch.randn(size, size, device=where).to(kind)
    seconds = []
    for _ in range(times + 1):
        synchronize()
        started = time.perf_counter()
        a @ a
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
