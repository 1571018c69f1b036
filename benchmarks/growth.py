"""Measures how time and memory grow with the batch, the size and number of images, and T."""

import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.models import PRETRAINED, SHAPES, load_shipped_model
from benchmarks.report import device, measure_in_subprocess, peak_megabytes, synchronize, write_result
from benchmarks.training import OURS, write_noise_images
from lightning_ddpm.commands.main import main
from lightning_ddpm.data import ImageDataModule, ImageFolder
from lightning_ddpm.diffusion import Ancestral, FixedLarge, Linear
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest


def run(options: Namespace) -> None:
    """Measure all settings in turn, in every round."""
    size, channels, batch = SHAPES[options.config]
    with tempfile.TemporaryDirectory() as folder:
        images = str(write_noise_images(Path(folder), 256, channels, 4 * size))
        fit = {"module": "step", "who": OURS, "config": options.config, "images": images}
        shapes = [(batch // 4, size), (batch // 2, size), (batch, size), (batch // 4, 2 * size), (batch // 4, 4 * size)]
        steps = {f"batch {n}, {side} x {side}": fit | {"batch_size": n, "size": side} for n, side in shapes}
        _measure(options, f"growth_step_{options.config}", "step", steps)
        sampling = {"module": "growth", "what": "sample"}
        sampled = {
            f"{n} images, T = {T}": sampling | {"n": n, "T": T}
            for n, T in ((64, 100), (64, 200), (64, 400), (512, 100))
        }
        _measure(options, "growth_sample", "call", sampled)
        evaluation = {"module": "growth", "what": "evaluate"}
        evaluated = {f"{n} images": evaluation | {"n": n} for n in (256, 1024, 4096)}
        _measure(options, "growth_evaluate", "run", evaluated)
        data: dict[str, dict[str, Any]] = {}
        for n in (1000, 4000, 16000):
            root = write_noise_images(Path(folder) / str(n), n, 3, 32)
            data[f"{n} images of 32 x 32"] = {"module": "growth", "what": "data", "root": str(root)}
        _measure(options, "growth_data", "start", data)


def _measure(options: Namespace, name: str, per: str, settings: dict[str, dict[str, Any]]) -> None:
    seconds: dict[str, list[float]] = {each: [] for each in settings}
    megabytes: dict[str, list[float]] = {each: [] for each in settings}
    for _ in range(options.rounds):
        for each, arguments in settings.items():
            found = measure_in_subprocess(**arguments)
            seconds[each].append(found["seconds"])
            megabytes[each].append(found["megabytes"])
    write_result(options.out, name, {"per": per, "rounds": options.rounds}, seconds, megabytes)


def sample(n: int, T: int) -> None:
    """Generate n digits, 64 at a time, by all steps of a schedule of T."""
    model = load_shipped_model()
    model.schedule = Linear(T).to(device())
    for _ in generate_batches(model, SampleRequest(n, sampler=Ancestral(FixedLarge()))):
        pass


def evaluate(n: int) -> None:
    """Run the whole command: generate n digits and compare them with the dataset's."""
    words = ["evaluate", "--ckpt", str(PRETRAINED), "--n", str(n), "--steps", "20", "--reference", "Digits"]
    if status := main([*words, "--extractor", "DigitsFeatures", "--devices", "1"]):
        sys.exit(status)


def data(root: str) -> None:
    """Make a folder of images ready for training: list, read and decode them."""
    module = ImageDataModule(ImageFolder(size=32, channels=3), root=root, batch_size=64, num_workers=0)
    module.prepare_data()
    module.setup("fit")
    next(iter(module.train_dataloader()))


def measure(what: str, **settings: Any) -> dict[str, float]:
    """Return seconds and peak MB beyond what the imports take; for data always the memory of the process."""
    before = peak_megabytes(what == "data")
    started = time.perf_counter()
    {"sample": sample, "evaluate": evaluate, "data": data}[what](**settings)
    synchronize()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": peak_megabytes(what == "data") - before}
