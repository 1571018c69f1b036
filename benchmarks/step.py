"""A few steps of one who trains: how long one takes, and how much memory."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.models import model_of, network_arguments
from benchmarks.report import megabytes_at_most, synchronize
from benchmarks.training import DIFFUSERS, OURS, PYTORCH, batches_of, block_of, fit
from lightning_ddpm.data import ImageDataModule, ImageFolder

STEPS = 3


class Clock(Callback):
    """The seconds of every step."""

    seconds: list[float] = []  # noqa: RUF012 of the one run of this process

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
    pictures: str,
    batch_size: int,
    size: int | None = None,
    precision: str = "32-true",
    switches: Sequence[str] = (),
) -> dict[str, float]:
    """Seconds of a step, the fastest after the first, and the memory that all of them took at most beside what the
    imports take, MB.
    """
    if who == DIFFUSERS:
        import diffusers  # noqa: F401
    if who == PYTORCH:
        import denoising_diffusion_pytorch  # noqa: F401
    before = megabytes_at_most()
    if who == OURS:
        clock = {"class_path": "benchmarks.step.Clock"}
        fit(config, Path(pictures), batch_size, clock, STEPS, size, precision, switches)
        seconds = Clock.seconds
    else:
        seconds = _steps(who, config, Path(pictures), batch_size, size, precision)
    return {"seconds": min(seconds[1:]), "megabytes": megabytes_at_most() - before}


def _steps(who: str, config: str, pictures: Path, batch_size: int, size: int | None, precision: str) -> list[float]:
    module = model_of(config, size).train()
    module.save_hyperparameters({"network": {"init_args": network_arguments(config, size)}}, logger=False)
    channels, side, _ = module.image_shape
    data = ImageDataModule(ImageFolder(channels, side), root=str(pictures), batch_size=batch_size, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    block = block_of(who, module, batches_of(data.train_dataloader(), module.device), pictures, batch_size, precision)
    del module  # theirs is another
    seconds = []
    for _ in range(STEPS):
        synchronize()
        started = time.perf_counter()
        block(1)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds
