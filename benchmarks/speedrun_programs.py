"""The programs of the speed run: how each trains 28x28 images against the clock, and samples from what it kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.models import read_config
from benchmarks.speedrun_clock import Clock
from benchmarks.speedrun_others import BATCH, DenoisingDiffusionPytorch, Diffusers
from lightning_ddpm.commands.main import main
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest


class Program(Protocol):
    """A program that trains and samples.

    Args:
        settings: "tuned" or "defaults".
        dataset: name of the images.
    """

    def describe(self) -> dict[str, Any]:
        """Return the settings, with the number of network evaluations per image as "nfe"."""
        ...

    def prepare(self, images: ImageDataset, prepared: Path) -> None:
        """Write the images into a folder as the program reads them, which does not count as training time."""
        ...

    def train(self, data: Path, prepared: Path, clock: Clock, seed: int) -> None:
        """Train until the time is over.

        Args:
            data: folder of the datasets.
            prepared: what :meth:`prepare` wrote.
            clock: measures every step, and ends the training.
            seed: random seed.
        """
        ...

    def sample(self, weights: Path, n: int, seed: int) -> Tensor:
        """Return (n, 1, 28, 28) uint8 images."""
        ...


class LightningDDPM:
    """This program, with the dataset's config as it is shipped."""

    def __init__(self, settings: str, dataset: str) -> None:
        self.config = read_config(dataset)

    def describe(self) -> dict[str, Any]:
        model, trainer = self.config["model"]["init_args"], self.config["trainer"]
        steps = {"batch_size": self.config["data"]["batch_size"], "steps": trainer["max_steps"]}
        return {
            **steps,
            "precision": trainer.get("precision", "32-true"),
            "nfe": model["sampler"]["init_args"]["steps"],
        }

    def prepare(self, images: ImageDataset, prepared: Path) -> None: ...

    def train(self, data: Path, prepared: Path, clock: Clock, seed: int) -> None:
        batch_size, trainer = self.config["data"]["batch_size"], self.config["trainer"]
        arguments = {"folder": str(clock.folder), "start": clock.start, "seconds": clock.seconds}
        keep = {"class_path": "benchmarks.speedrun_programs.KeepWeights"}
        kept = [
            each for each in trainer["callbacks"] if not each["class_path"].endswith((".SampleGrid", ".Evaluation"))
        ]
        trainer["callbacks"] = [*kept, keep | {"init_args": arguments | {"batch_size": batch_size}}]
        trainer |= {"default_root_dir": str(clock.folder / "run"), "limit_val_batches": 0}
        self.config["seed_everything"] = seed
        self.config["data"]["root"] = str(data)
        file = clock.folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        if status := main(["fit", "--config", str(file)]):
            raise SystemExit(status)

    def sample(self, weights: Path, n: int, seed: int) -> Tensor:
        model = load(weights, DDPM)
        batches = generate_batches(model, SampleRequest(n, seed, BATCH))
        return torch.cat([images for _, images in batches])


class KeepWeights(Callback):
    """Writes checkpoints, and stops the run when the time is over."""

    def __init__(self, folder: str, start: float, seconds: float, batch_size: int) -> None:
        self.clock = Clock(Path(folder), start, seconds)
        self.batch_size = batch_size

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_last = trainer.global_step == trainer.max_steps
        if self.clock.step(trainer.global_step * self.batch_size, trainer.save_checkpoint, is_last):
            trainer.should_stop = True


PROGRAMS: dict[str, Callable[[str, str], Program]] = {
    "lightning_ddpm": LightningDDPM,
    "diffusers": Diffusers,
    "denoising-diffusion-pytorch": DenoisingDiffusionPytorch,
}
