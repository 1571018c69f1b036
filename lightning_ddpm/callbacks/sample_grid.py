"""Pictures of what the model makes, from the same noise all along the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks.ema import use_averaged_weights
from lightning_ddpm.callbacks.interval import Interval
from lightning_ddpm.callbacks.run_logger import get_writers
from lightning_ddpm.data.image_io import arrange_grid, save_image
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest


class SampleGrid(Callback):
    """Draws n images with the EMA weights, as a TensorBoard image and a PNG in the run's folder ``samples``.

    Of a model with classes, each has a column.

    Args:
        n: number of images.
        sampler: how; ``null`` for the model's own.
        every_n_steps: of the optimizer, or
        every_n_epochs: one of the two.
        seed: of the set of images.
        guidance: towards the classes; ``null`` for none beyond telling the network.
    """

    def __init__(
        self,
        n: int = 64,
        sampler: Sampler | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        seed: int = 0,
        guidance: Guidance | None = None,
    ) -> None:
        self.request = SampleRequest(n, seed, sampler=sampler, guidance=guidance)
        self.interval = Interval(every_n_steps, every_n_epochs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a sampler or guidance that does not go with the model before any work."""
        if self.request.sampler is not None and isinstance(pl_module, DDPM):
            self.request.sampler.nfe(pl_module.schedule.T)  # refuses more steps than there are
        if self.request.guidance is not None and isinstance(pl_module, DDPM):
            self.request.guidance.check_model(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interval.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval.after_batch(trainer):
            self.draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval.after_epoch(trainer):
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw now, on the first rank; the others go on to the next step and wait there."""
        if not trainer.is_global_zero:
            return
        assert isinstance(module, DDPM)
        context = trainer.precision_plugin.forward_context
        with use_averaged_weights(trainer, module):
            classes = len(module.list_class_names(self.request.guidance))
            request = replace(self.request, labels=range(classes) if classes else None)
            made = generate_batches(module, request, context=context)
            picture = arrange_grid(torch.cat([pixels.cpu() for _, pixels in made]), classes or None)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        save_image(picture, folder / f"step-{trainer.global_step:07d}.png")
        for writer in get_writers(trainer):
            writer.add_image("samples", picture, trainer.global_step)
