"""How time and memory grow: with the batch, the images' size and number, with T, with the images drawn and judged."""

import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.models import PRETRAINED, SHAPES, pretrained
from benchmarks.report import alone, device, megabytes_at_most, synchronize, write
from benchmarks.training import OURS, make_up
from lightning_ddpm.commands.main import main
from lightning_ddpm.data import ImageDataModule, ImageFolder
from lightning_ddpm.diffusion import Ancestral, FixedLarge, Linear
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest


def run(options: Namespace) -> None:
    """Every setting so many times, in turn."""
    size, channels, batch = SHAPES[options.config]
    with tempfile.TemporaryDirectory() as folder:
        pictures = str(make_up(Path(folder), 256, channels, 4 * size))
        fit = {"module": "step", "who": OURS, "config": options.config, "pictures": pictures}
        shapes = [(batch // 4, size), (batch // 2, size), (batch, size), (batch // 4, 2 * size), (batch // 4, 4 * size)]
        steps = {f"batch {n}, {side} x {side}": fit | {"batch_size": n, "size": side} for n, side in shapes}
        _measure(options, f"growth_step_{options.config}", "step", steps)
        draw = {"module": "growth", "what": "draw"}
        drawn = {
            f"{n} images, T = {T}": draw | {"n": n, "T": T} for n, T in ((64, 100), (64, 200), (64, 400), (512, 100))
        }
        _measure(options, "growth_draw", "call", drawn)
        judge = {"module": "growth", "what": "evaluate"}
        judged = {f"{n} images": judge | {"n": n} for n in (256, 1024, 4096)}
        _measure(options, "growth_evaluate", "evaluation", judged)
        data: dict[str, dict[str, Any]] = {}
        for n in (1000, 4000, 16000):
            root = make_up(Path(folder) / str(n), n, 3, 32)
            data[f"{n} pictures of 32 x 32"] = {"module": "growth", "what": "data", "root": str(root)}
        _measure(options, "growth_data", "start", data)


def _measure(options: Namespace, name: str, per: str, settings: dict[str, dict[str, Any]]) -> None:
    seconds: dict[str, list[float]] = {each: [] for each in settings}
    megabytes: dict[str, list[float]] = {each: [] for each in settings}
    for _ in range(options.rounds):
        for each, arguments in settings.items():
            found = alone(**arguments)
            seconds[each].append(found["seconds"])
            megabytes[each].append(found["megabytes"])
    write(options.out, name, {"per": per, "rounds": options.rounds}, seconds, megabytes)


def draw(n: int, T: int) -> None:
    """n digits, 64 at a time, by all steps of a schedule of T."""
    model = pretrained()
    model.schedule = Linear(T).to(device())
    for _ in generate_batches(model, SampleRequest(n, sampler=Ancestral(FixedLarge()))):
        pass


def evaluate(n: int) -> None:
    """The whole command: n digits drawn, judged and compared with the data set's."""
    words = ["evaluate", "--ckpt", str(PRETRAINED), "--n", str(n), "--steps", "20", "--reference", "Digits"]
    if status := main([*words, "--extractor", "DigitsFeatures", "--devices", "1"]):
        sys.exit(status)


def data(root: str) -> None:
    """A folder of pictures, ready for training: listed, read, decoded."""
    module = ImageDataModule(ImageFolder(size=32, channels=3), root=root, batch_size=64, num_workers=0)
    module.prepare_data()
    module.setup("fit")
    next(iter(module.train_dataloader()))


def measure(what: str, **settings: Any) -> dict[str, float]:
    """Seconds, and the memory taken at most beside what the imports take, MB; of data always the process's."""
    before = megabytes_at_most(what == "data")
    started = time.perf_counter()
    {"draw": draw, "evaluate": evaluate, "data": data}[what](**settings)
    synchronize()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": megabytes_at_most(what == "data") - before}
