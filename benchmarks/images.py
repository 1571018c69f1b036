"""Images that the data's loaders give, beside those that a training step takes."""

import itertools
import multiprocessing
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml

from benchmarks.report import in_turn, write
from benchmarks.training import CONFIGS, bare, make_up
from lightning_ddpm.data import Digits, ImageDataModule, ImageFolder, ImageSource, datasets
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.module import DDPM
from lightning_ddpm.networks import UNet

BATCH, IMAGES = 64, 1280


def run(options: Namespace) -> None:
    """The digits, and pictures of CIFAR-10's size decoded once or at every reading, with 0, 1 and 2 workers."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_up(Path(folder), IMAGES, 3, 32)
        _measure(options, "digits", Digits(), {"in memory": datasets.MEMORY}, pictures)
        small = ImageFolder(size=32, channels=3)
        _measure(options, "cifar10", small, {"in memory": datasets.MEMORY, "from files": 0}, pictures)


def _measure(options: Namespace, config: str, source: ImageSource, kept: dict[str, int], root: Path) -> None:
    contenders: dict[str, Callable[[], object]] = {}
    for where, memory in kept.items():
        datasets.MEMORY = memory
        for workers in (0, 1, 2):
            data = ImageDataModule(source, root=str(root), batch_size=BATCH, workers=workers)
            data.prepare_data()
            data.setup("fit")
            contenders[f"{where}, {workers} workers"] = partial(_read, data)
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["model"]["init_args"]["network"]["init_args"]
    network = UNet(**settings | {"channels": data.channels, "size": data.size})
    x = torch.randn(BATCH, *(data.channels, data.size, data.size))
    step = bare(network, DDPM(network, Linear(1000), DDIM(50)), itertools.repeat((x, x)))
    seconds = in_turn({"training step": partial(step, 1)} | contenders, options.rounds)
    per = {
        name: [each / (BATCH if name == "training step" else len(data.train)) for each in found]
        for name, found in seconds.items()
    }
    settings = {"batch": BATCH, "per": "image", "images": 1, "rounds": options.rounds}
    if Path("/proc/self/smaps_rollup").exists():  # on Linux
        settings["MB of a worker's own"] = round(_own_memory(source, root))
    write(options.out, f"input_{config}", settings, per)


def _own_memory(source: ImageSource, root: Path) -> float:
    """What a worker shares with nobody while it reads, MB."""
    datasets.MEMORY = 2**30
    data = ImageDataModule(source, root=str(root), batch_size=BATCH, workers=1)
    data.prepare_data()
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    said = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    return sum(int(each) for each in re.findall(r"Private_\w+: *(\d+) kB", said)) * 1024 / 1e6


def _read(data: ImageDataModule) -> None:
    """All training images, as training gets them; the workers' start is in it."""
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch, 0)
