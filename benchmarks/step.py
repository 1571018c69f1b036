"""A few steps of one who trains: how long one takes, and how much memory."""

import time
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.report import device, megabytes_at_most, synchronize
from benchmarks.training import CONFIGS, DIFFUSERS, OURS, PYTORCH, SHAPES, batches_of, block_of, fit
from lightning_ddpm.data import ImageDataModule, ImageFolder
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.module import DDPM
from lightning_ddpm.networks import UNet

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


def measure(who: str, config: str, pictures: str, batch_size: int, size: int | None = None) -> dict[str, float]:
    """Seconds of a step, the fastest after the first, and the memory that all of them took at most beside what the
    imports take, MB.
    """
    if who == DIFFUSERS:
        import diffusers  # noqa: F401
    if who == PYTORCH:
        import denoising_diffusion_pytorch  # noqa: F401
    before = megabytes_at_most()
    if who == OURS:
        fit(config, Path(pictures), batch_size, {"class_path": "benchmarks.step.Clock"}, STEPS, size)
        seconds = Clock.seconds
    else:
        seconds = _steps(who, config, Path(pictures), batch_size, size)
    return {"seconds": min(seconds[1:]), "megabytes": megabytes_at_most() - before}


def _steps(who: str, config: str, pictures: Path, batch_size: int, size: int | None) -> list[float]:
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["model"]["init_args"]["network"]
    shape = {"channels": SHAPES[config][1], "size": size or SHAPES[config][0]}
    arguments = settings["init_args"] | shape | {"attention": [shape["size"] // 2]}
    module = DDPM(UNet(**arguments), Linear(1000), DDIM(50)).to(device()).train()
    module.save_hyperparameters({"network": {"init_args": arguments}}, logger=False)
    data = ImageDataModule(ImageFolder(**shape), root=str(pictures), batch_size=batch_size, workers=0)
    data.prepare_data()
    data.setup("fit")
    block = block_of(who, module, batches_of(data.train_dataloader(), module.device), pictures, batch_size)
    del module  # theirs is another
    seconds = []
    for _ in range(STEPS):
        synchronize()
        started = time.perf_counter()
        block(1)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds
