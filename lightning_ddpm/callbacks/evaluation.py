"""Generates images in the course of training and says how far they are from the real ones."""

import time
import warnings
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks.ema import averaged_weights
from lightning_ddpm.callbacks.interval import Interval
from lightning_ddpm.callbacks.tensorboard import writers
from lightning_ddpm.console import duration, progress, say
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.diffusion import Sampler
from lightning_ddpm.errors import UserError
from lightning_ddpm.generation import evaluating, generate
from lightning_ddpm.metrics import FeatureExtractor, FrechetDistance
from lightning_ddpm.module import DDPM


class Evaluation(Callback):
    """Fréchet distance of n generated images to the un-augmented training set, by all ranks together, on EMA weights.

    The same n images' noise every time. Logged as ``val/<metric>``, the metric's name saying the feature network, and
    usable as ``monitor`` of a checkpoint. Runs in fit at its interval (not in the sanity check), in validate and test.

    Attributes:
        evaluated: the step of the last evaluation.

    Args:
        extractor: the feature network; Inception's distance is the FID.
        n: images to generate; 50,000 for a figure to publish.
        sampler: how; ``null`` for the model's own.
        every_n_steps: of the optimizer, or
        every_n_epochs: one of the two.
        batch_size: images generated at a time.
        seed: of the set of images.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        n: int,
        sampler: Sampler | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if n < 2 or batch_size < 1:
            raise UserError(f"an evaluation needs at least 2 images in batches of at least 1, got {n} and {batch_size}")
        self.extractor, self.n, self.sampler = extractor, n, sampler
        self.interval = Interval(every_n_steps, every_n_epochs)
        self.batch_size, self.seed = batch_size, seed
        self.distance: FrechetDistance | None = None
        self.evaluated = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the extractor's weights, on the first rank first: what is missing is said before any work."""
        if stage == "predict":
            return
        model = _ddpm(pl_module)
        self.extractor.check(*model.image_shape[:2])
        (self.sampler or model.sampler).evaluations(model.schedule.T)  # refuses more steps than there are
        if trainer.is_global_zero:
            self.extractor.load()
        trainer.strategy.barrier()
        self.extractor.load()
        if self.n < self.extractor.num_features and trainer.is_global_zero:
            warnings.warn(
                f"{self.n} images do not fill the covariance of {self.extractor.num_features} features: "
                f"{self.extractor.metric} will be far off; generate at least {self.extractor.num_features}",
                stacklevel=2,
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)
        say_once = say if trainer.is_global_zero else _silent
        say_once(f"evaluation: {self.cost(trainer, _ddpm(pl_module))}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interval.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval.after_batch(trainer):
            self._log(trainer, pl_module, on_step=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval.after_epoch(trainer):
            self._log(trainer, pl_module, on_step=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            pl_module.log(f"val/{self.extractor.metric}", self.evaluate(trainer, pl_module))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log(f"test/{self.extractor.metric}", self.evaluate(trainer, pl_module))

    def _log(self, trainer: Trainer, module: LightningModule, on_step: bool) -> None:
        name, value = f"val/{self.extractor.metric}", self.evaluate(trainer, module)
        module.log(name, value, on_step=on_step, on_epoch=not on_step, logger=False, prog_bar=True)
        for logger in trainer.loggers:  # at this very step, whatever log_every_n_steps is
            logger.log_metrics({name: value}, step=trainer.global_step - 1)  # Lightning counts from 0

    def evaluate(self, trainer: Trainer, module: LightningModule) -> float:
        """The distance now; every rank must call."""
        model, distance = _ddpm(module), self._prepare(trainer, module)
        context = trainer.precision_plugin.forward_context
        with averaged_weights(trainer, module):
            images = generate(
                *(model, self.n, self.seed, self.batch_size, trainer.global_rank, trainer.world_size),
                sampler=self.sampler,
                context=context,
            )
            counted = ((stop - start, pixels) for (_, start, stop), pixels in images)
            share = -(-self.n // trainer.world_size)
            for pixels in progress(counted, share, "evaluation", trainer.is_global_zero, bar=False):
                distance.update(pixels)
        value = distance.compute()
        self.evaluated = trainer.global_step
        if trainer.is_global_zero:
            say(f"step {trainer.global_step}: val/{self.extractor.metric} {value:.4g} ({self.n} images)")
        return value

    def cost(self, trainer: Trainer, model: DDPM) -> str:
        """What one evaluation takes, from one timed batch, in words."""
        evaluations = (self.sampler or model.sampler).evaluations(model.schedule.T)
        x = torch.zeros(min(self.batch_size, self.n), *model.image_shape, device=model.device)
        t = torch.ones(len(x), dtype=torch.long, device=model.device)
        with evaluating(model), trainer.precision_plugin.forward_context():
            model.network(x, t)
            started = time.monotonic()
            float(model.network(x, t).sum())  # waits for the device
        seconds = (time.monotonic() - started) * self.n / len(x) / trainer.world_size
        if evaluations is None:
            cost = f"as many network evaluations as {self.n} images take, {duration(seconds)} for one of each"
        else:
            cost = f"{self.n} images x {evaluations} network evaluations, about {duration(seconds * evaluations)}"
        return f"{cost}, val/{self.extractor.metric} by {self.extractor.protocol}; {self.reference}"

    def _prepare(self, trainer: Trainer, module: LightningModule) -> FrechetDistance:
        if self.distance is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, ImageDataModule):
                raise UserError(
                    f"Evaluation compares with an ImageDataModule's training set, got {type(data).__name__}"
                )
            self.distance = FrechetDistance(self.extractor, module.device)

            def reduce(tensor: Tensor) -> Tensor:
                return trainer.strategy.reduce(tensor, reduce_op="sum")

            show = partial(progress, what="reference", show=trainer.is_global_zero, bar=False)
            rank, world = trainer.global_rank, trainer.world_size
            self.reference = self.distance.set_reference(data.reference(), reduce, rank, world, show)
            protocol = f"n={self.n}, sampler {self.sampler or _ddpm(module).sampler}, seed={self.seed}"
            for writer in writers(trainer):
                text = f"{protocol}, {self.extractor.protocol}, {self.reference}"
                writer.add_text(f"val/{self.extractor.metric}/protocol", text)
        return self.distance


def _ddpm(module: LightningModule) -> DDPM:
    if not isinstance(module, DDPM):
        raise UserError(f"generating images needs a DDPM, got {type(module).__name__}; take the callback out")
    return module


def _silent(line: str) -> None:
    pass
