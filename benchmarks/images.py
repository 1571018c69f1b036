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

from benchmarks.models import model_of
from benchmarks.report import in_turn, write
from benchmarks.training import bare, make_up
from lightning_ddpm.data import Digits, ImageDataModule, ImageFolder, ImageSource, decoded
from lightning_ddpm.data.decoded import MEMORY

BATCH, IMAGES = 64, 1280


def run(options: Namespace) -> None:
    """The digits, and pictures of CIFAR-10's size decoded once, into memory or a file, or at every reading; with 0, 1
    and 2 workers.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_up(Path(folder), IMAGES, 3, 32)
        _measure(options, "digits", {"in memory": _opener(Digits(), pictures)})
        small = ImageFolder(size=32, channels=3)
        kept = {
            "in memory": _opener(small, pictures),
            "in a mapped file": _opener(small, pictures, 0, f"{folder}/decoded"),
            "from files": _opener(small, pictures, 0),
        }
        _measure(options, "cifar10", kept)


def _opener(
    source: ImageSource, root: Path, memory: int = MEMORY, folder: str | None = None
) -> Callable[[int], ImageDataModule]:
    """Opens the source's training images with so many workers, as if the memory were so large."""

    def opened(workers: int) -> ImageDataModule:
        decoded.MEMORY = memory
        data = ImageDataModule(source, root=str(root), batch_size=BATCH, workers=workers, decoded=folder)
        data.prepare_data()
        data.setup("fit")
        return data

    return opened


def _measure(options: Namespace, config: str, kept: dict[str, Callable[[int], ImageDataModule]]) -> None:
    contenders: dict[str, Callable[[], object]] = {}
    for where, opened in kept.items():
        for workers in (0, 1, 2):
            data = opened(workers)
            contenders[f"{where}, {workers} workers"] = partial(_read, data)
    module = model_of(config)
    x = torch.randn(BATCH, *module.image_shape, device=module.device)
    step = bare(module.network, module, itertools.repeat((x, x)))
    seconds = in_turn({"training step": partial(step, 1)} | contenders, options.rounds)
    per = {
        name: [each / (BATCH if name == "training step" else len(data.train)) for each in found]
        for name, found in seconds.items()
    }
    settings = {"batch": BATCH, "per": "image", "images": 1, "rounds": options.rounds}
    if Path("/proc/self/smaps_rollup").exists():  # on Linux
        settings["MB of a worker's own"] = round(_own_memory(kept["in memory"](1)))
    write(options.out, f"input_{config}", settings, per)


def _own_memory(data: ImageDataModule) -> float:
    """What its worker shares with nobody while it reads, MB."""
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    said = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    return sum(int(each) for each in re.findall(r"Private_\w+: *(\d+) kB", said)) * 1024 / 1e6


def _read(data: ImageDataModule) -> None:
    """All training images, as training gets them; the workers' start is in it."""
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch, 0)
