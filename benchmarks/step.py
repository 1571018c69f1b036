"""Measures the time and memory of a few training steps of one contender, in a process of its own."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.loops import DIFFUSERS, PYTORCH, make_block
from benchmarks.models import build_model, get_network_arguments
from benchmarks.report import peak_megabytes, synchronize
from benchmarks.training import OURS, fit_images, iterate_batches
from lightning_ddpm.data import ImageDataModule, ImageFolder

STEPS = 3


class Clock(Callback):
    """Records the seconds of every step."""

    seconds: list[float] = []  # noqa: RUF012 one run per process

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        synchronize()
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def measure(
    who: str,
    config: str,
    images: str,
    batch_size: int,
    size: int | None = None,
    precision: str = "32-true",
    callbacks: Sequence[str] = (),
) -> dict[str, float]:
    """Return the seconds of the fastest step after the first, and the peak MB of all beyond what the imports take."""
    if who == DIFFUSERS:
        import diffusers  # noqa: F401
    if who == PYTORCH:
        import denoising_diffusion_pytorch  # noqa: F401
    before = peak_megabytes()
    if who == OURS:
        clock = {"class_path": "benchmarks.step.Clock"}
        fit_images(config, Path(images), batch_size, clock, STEPS, size, precision, callbacks)
        seconds = Clock.seconds
    else:
        seconds = _time_steps(who, config, Path(images), batch_size, size, precision)
    return {"seconds": min(seconds[1:]), "megabytes": peak_megabytes() - before}


def _time_steps(who: str, config: str, images: Path, batch_size: int, size: int | None, precision: str) -> list[float]:
    module = build_model(config, size).train()
    module.save_hyperparameters({"network": {"init_args": get_network_arguments(config, size)}}, logger=False)
    channels, side, _ = module.image_shape
    data = ImageDataModule(ImageFolder(channels, side), root=str(images), batch_size=batch_size, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    block = make_block(
        who, module, iterate_batches(data.train_dataloader(), module.device), images, batch_size, precision
    )
    del module  # the others have a model of their own
    seconds = []
    for _ in range(STEPS):
        synchronize()
        started = time.perf_counter()
        block(1)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds
