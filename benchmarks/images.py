"""Images that the data's loaders give, beside those that a training step takes."""

import itertools
import multiprocessing
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import lmdb
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.models import model_of
from benchmarks.report import device, in_turn, write
from benchmarks.training import bare, make_up
from lightning_ddpm.data import (
    CIFAR10,
    LSUN,
    MNIST,
    CelebA,
    Digits,
    FashionMNIST,
    ImageDataModule,
    ImageFolder,
    ImageSource,
    decoded,
)
from lightning_ddpm.data.datasets import Batch
from lightning_ddpm.data.decode_cache import MAX_BYTES_IN_MEMORY
from lightning_ddpm.data.image_io import to_float

BATCH, IMAGES = 64, 1280
Opener = Callable[[int], ImageDataModule]
"""Opens a source's training images with so many workers."""


def run(options: Namespace) -> None:
    """The digits; pictures of CIFAR-10's size decoded once, into memory or a file, or at every reading, and made floats
    before they are sent rather than afterwards; photographs in a folder and in LSUN's database; CIFAR-10, MNIST,
    Fashion-MNIST and CelebA where --data has them. Each with 0, 1 and 2 workers.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _measure(options, "digits", {"Digits": _opener(Digits(), folder)})
        pictures, small = make_up(folder, IMAGES, 3, 32), ImageFolder(size=32, channels=3)
        photographs, large = _photographs(folder, IMAGES // 4), ImageFolder(size=256, channels=3)
        kept = {
            "ImageFolder, in memory": _opener(small, pictures),
            "ImageFolder, in memory, sent as floats": _opener(small, pictures, module=SentAsFloats),
            "ImageFolder, in a mapped file": _opener(small, pictures, 0, f"{folder}/decoded"),
            "ImageFolder, from PNG files": _opener(small, pictures, 0),
            "ImageFolder, 256 x 256 from JPEG files": _opener(large, photographs, 0),
            "LSUN, 256 x 256": _opener(LSUN("church_outdoor", 256), _lsun(folder, photographs), 0),
        }
        theirs = {
            "cifar-10-batches-py": CIFAR10(),
            "MNIST": MNIST(),
            "FashionMNIST": FashionMNIST(),
            "celeba": CelebA(),
        }
        for part, source in theirs.items():
            if options.data and (options.data / part).is_dir():
                kept[type(source).__name__] = _opener(source, options.data)
        _measure(options, "cifar10", kept)


def _photographs(folder: Path, n: int) -> Path:
    """A folder of n JPEG files of 320 x 256 pixels, as coarse as noise blown up."""
    photographs = folder / "photographs"
    photographs.mkdir()
    for index in range(n):
        noise = torch.randint(0, 256, (32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.numpy()).resize((320, 256), Image.Resampling.BICUBIC).save(photographs / f"{index}.jpg")
    return photographs


def _lsun(folder: Path, photographs: Path) -> Path:
    """The photographs in databases as LSUN's are."""
    for split in ("train", "val"):
        with (
            lmdb.open(str(folder / f"church_outdoor_{split}_lmdb"), map_size=2**30) as base,
            base.begin(write=True) as to,
        ):
            for path in photographs.iterdir():
                to.put(path.stem.encode(), _webp(path))
    return folder


def _webp(path: Path) -> bytes:
    file = BytesIO()
    Image.open(path).save(file, "WEBP")
    return file.getvalue()


class SentAsFloats(ImageDataModule):
    """Where images become floats as most programs have it: in the worker, on the way to the device four times as
    large.
    """

    def train_dataloader(self) -> DataLoader[Batch]:
        loader = super().train_dataloader()
        loader.collate_fn = _floats
        return loader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def _floats(batch: Batch) -> Batch:
    images, labels = batch
    return to_float(images), labels


def _opener(
    source: ImageSource,
    root: Path,
    memory: int = MAX_BYTES_IN_MEMORY,
    folder: str | None = None,
    module: type[ImageDataModule] = ImageDataModule,
) -> Opener:
    """Of a source, as if the memory were so large."""

    def opened(workers: int) -> ImageDataModule:
        decoded.MEMORY = memory
        data = module(source, root=str(root), batch_size=BATCH, num_workers=workers, decode_cache=folder)
        data.prepare_data()
        data.setup("fit")
        return data

    return opened


def _measure(options: Namespace, config: str, kept: dict[str, Opener]) -> None:
    module = model_of(config)
    x = torch.randn(BATCH, *module.image_shape, device=module.device)
    step = bare(module.network, module, itertools.repeat((x, x)))
    contenders: dict[str, Callable[[], object]] = {"training step": partial(step, 1)}
    images = {"training step": BATCH}
    for (what, opened), workers in itertools.product(kept.items(), (0, 1, 2)):
        data, name = opened(workers), f"{what}, {workers} worker{'' if workers == 1 else 's'}"
        images[name] = min(len(data.train), 10 * IMAGES)
        contenders[name] = partial(_read, data, images[name])
    seconds = in_turn(contenders, options.rounds)
    per = {name: [each / images[name] for each in found] for name, found in seconds.items()}
    settings = {"batch": BATCH, "per": "image", "images": 1, "rounds": options.rounds}
    if Path("/proc/self/smaps_rollup").exists():  # on Linux
        own = {what: f"{_own_memory(opened(1)):.0f}" for what, opened in kept.items()}
        settings["MB of a worker's own"] = "; ".join(f"{what} {own[what]}" for what in kept)
    write(options.out, f"input_{config}", settings, per)


def _own_memory(data: ImageDataModule) -> float:
    """What its worker shares with nobody while it reads, MB."""
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    said = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    return sum(int(each) for each in re.findall(r"Private_\w+: *(\d+) kB", said)) * 1024 / 1e6


def _read(data: ImageDataModule, n: int) -> None:
    """The first n training images of an epoch, as training gets them; the workers' start is in it."""
    for batch in itertools.islice(data.train_dataloader(), -(-n // BATCH)):
        data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device(), 0), 0)
