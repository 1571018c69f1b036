"""Grids of generated images, from the same noise throughout the run."""

from dataclasses import replace

import torch
from pytorch_lightning import LightningModule, Trainer

from lightning_ddpm.callbacks.interval import Interval, PeriodicCallback
from lightning_ddpm.callbacks.run_logger import log_image
from lightning_ddpm.callbacks.trainer_access import use_averaged_weights
from lightning_ddpm.data.previews import Preview, choose_preview
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.image_generator import ImageGenerator, check_request, require_generator
from lightning_ddpm.models.sample_request import SampleRequest


class SampleGrid(PeriodicCallback):
    """Generates n images with the EMA weights, as a TensorBoard image and a PNG in the run's folder ``samples``.

    If the model has classes, each has a column under its name.

    Args:
        n: number of images.
        sampler: the sampler; ``null`` for the model's own.
        every_n_steps: interval in optimizer steps, or
        every_n_epochs: in epochs; give one of the two.
        seed: seed of the set of images.
        guidance: guidance towards the classes; ``null`` for no guidance beyond conditioning the network on them.
        preview: how images of any values and channels are shown; ``null`` for gray and RGB of integers, and a color map
            for each channel of numbers: see :func:`~lightning_ddpm.data.previews.choose_preview`.
    """

    def __init__(
        self,
        n: int = 64,
        sampler: Sampler | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        seed: int = 0,
        guidance: Guidance | None = None,
        preview: Preview | None = None,
    ) -> None:
        super().__init__(Interval(every_n_steps, every_n_epochs))
        self.request, self.preview = SampleRequest(n, seed, sampler=sampler, guidance=guidance), preview

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a sampler, guidance or preview that does not fit the model, before any work."""
        if stage == "fit":
            model = require_generator(pl_module)
            check_request(model, self.request)
            self._get_preview(model).check(model.image_shape, self.request.n)

    def _get_preview(self, model: ImageGenerator) -> Preview:
        return self.preview or choose_preview(model.values, model.image_shape[0])

    def run_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Generate the images on the first rank; the others continue to the next step and wait there."""
        if not trainer.is_global_zero:
            return
        model, context = require_generator(module), trainer.precision_plugin.forward_context
        with use_averaged_weights(trainer, module):
            classes = (model.list_class_names(self.request.guidance) if isinstance(model, DDPM) else None) or None
            request = replace(self.request, labels=range(len(classes)) if classes else None)
            images = torch.cat([pixels.cpu() for _, pixels in generate_batches(model, request, context=context)])
        columns = len(classes) if classes else None
        grid = self._get_preview(model).arrange(model.values, images, columns, classes)
        log_image(trainer, grid, f"samples/step-{trainer.global_step:07d}.png", "samples")
