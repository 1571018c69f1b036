"""Times the loaders of the data sources, beside the training step that consumes their images."""

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

from benchmarks.loops import make_bare_loop
from benchmarks.models import build_model
from benchmarks.report import device, time_in_turns, write_result
from benchmarks.training import write_noise_images
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
    decode_cache,
)
from lightning_ddpm.data.datasets import Batch
from lightning_ddpm.data.image_io import to_float

BATCH, IMAGES = 64, 1280
Opener = Callable[[int], ImageDataModule]
"""Opens a source's training images with this many workers."""


def run(options: Namespace) -> None:
    """Time every source with 0, 1 and 2 workers.

    The sources are the digits; images of CIFAR-10's size that are decoded once, into memory or into a file, or at every
    access, and converted to floats before the transfer instead of after it; JPEG files in a folder and in LSUN's
    database; and CIFAR-10, MNIST, Fashion-MNIST and CelebA if --data has them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _measure(options, "digits", {"Digits": _make_opener(Digits(), folder)})
        images_folder, small = write_noise_images(folder, IMAGES, 3, 32), ImageFolder(size=32, channels=3)
        jpegs, large = _write_jpegs(folder, IMAGES // 4), ImageFolder(size=256, channels=3)
        openers = {
            "ImageFolder, in memory": _make_opener(small, images_folder),
            "ImageFolder, in memory, sent as floats": _make_opener(small, images_folder, module=SentAsFloats),
            "ImageFolder, in a mapped file": _make_opener(small, images_folder, 0, f"{folder}/decoded"),
            "ImageFolder, from PNG files": _make_opener(small, images_folder, 0),
            "ImageFolder, 256 x 256 from JPEG files": _make_opener(large, jpegs, 0),
            "LSUN, 256 x 256": _make_opener(LSUN("church_outdoor", 256), _write_lsun(folder, jpegs), 0),
        }
        published = {
            "cifar-10-batches-py": CIFAR10(),
            "MNIST": MNIST(),
            "FashionMNIST": FashionMNIST(),
            "celeba": CelebA(),
        }
        for part, source in published.items():
            if options.data and (options.data / part).is_dir():
                openers[type(source).__name__] = _make_opener(source, options.data)
        _measure(options, "cifar10", openers)


def _write_jpegs(folder: Path, n: int) -> Path:
    """Write n JPEG files of 320 x 256 pixels, enlarged from coarse noise."""
    jpegs = folder / "jpegs"
    jpegs.mkdir()
    for index in range(n):
        noise = torch.randint(0, 256, (32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.numpy()).resize((320, 256), Image.Resampling.BICUBIC).save(jpegs / f"{index}.jpg")
    return jpegs


def _write_lsun(folder: Path, jpegs: Path) -> Path:
    """Write the JPEG files into databases like LSUN's."""
    for split in ("train", "val"):
        with (
            lmdb.open(str(folder / f"church_outdoor_{split}_lmdb"), map_size=2**30) as base,
            base.begin(write=True) as to,
        ):
            for path in jpegs.iterdir():
                to.put(path.stem.encode(), _encode_webp(path))
    return folder


def _encode_webp(path: Path) -> bytes:
    file = BytesIO()
    Image.open(path).save(file, "WEBP")
    return file.getvalue()


class SentAsFloats(ImageDataModule):
    """Converts images to floats in the worker, as most programs do, which quadruples the bytes of the transfer."""

    def train_dataloader(self) -> DataLoader[Batch]:
        loader = super().train_dataloader()
        loader.collate_fn = _convert_batch
        return loader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def _convert_batch(batch: Batch) -> Batch:
    images, labels = batch
    return to_float(images), labels


def _make_opener(
    source: ImageSource,
    root: Path,
    memory: int = decode_cache.MAX_BYTES_IN_MEMORY,
    folder: str | None = None,
    module: type[ImageDataModule] = ImageDataModule,
) -> Opener:
    """Return an opener of a source that decodes into memory only up to this many bytes."""

    def open_source(workers: int) -> ImageDataModule:
        decode_cache.MAX_BYTES_IN_MEMORY = memory
        data = module(source, root=str(root), batch_size=BATCH, num_workers=workers, decode_cache=folder)
        data.prepare_data()
        data.setup("fit")
        return data

    return open_source


def _measure(options: Namespace, config: str, openers: dict[str, Opener]) -> None:
    module = build_model(config)
    x = torch.randn(BATCH, *module.image_shape, device=module.device)
    step = make_bare_loop(module.network, module, itertools.repeat((x, x)))
    contenders: dict[str, Callable[[], object]] = {"training step": partial(step, 1)}
    images = {"training step": BATCH}
    for (what, opened), workers in itertools.product(openers.items(), (0, 1, 2)):
        data, name = opened(workers), f"{what}, {workers} worker{'' if workers == 1 else 's'}"
        images[name] = min(len(data.train), 10 * IMAGES)
        contenders[name] = partial(_read, data, images[name])
    seconds = time_in_turns(contenders, options.rounds)
    per = {name: [each / images[name] for each in found] for name, found in seconds.items()}
    settings = {"batch": BATCH, "per": "image", "images": 1, "rounds": options.rounds}
    if Path("/proc/self/smaps_rollup").exists():  # on Linux
        private = {what: f"{_measure_private_memory(opened(1)):.0f}" for what, opened in openers.items()}
        settings["private MB per worker"] = "; ".join(f"{what} {private[what]}" for what in openers)
    write_result(options.out, f"loading_{config}", settings, per)


def _measure_private_memory(data: ImageDataModule) -> float:
    """Return the memory that a reading worker shares with no other process, MB."""
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    return sum(int(each) for each in re.findall(r"Private_\w+: *(\d+) kB", rollup)) * 1024 / 1e6


def _read(data: ImageDataModule, n: int) -> None:
    """Read the first n training images of an epoch as training does, including the start of the workers."""
    for batch in itertools.islice(data.train_dataloader(), -(-n // BATCH)):
        data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device(), 0), 0)
