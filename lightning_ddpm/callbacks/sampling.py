"""What callbacks share that generate images and judge them by a feature network."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks.ema import use_averaged_weights
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.metrics import FeatureExtractor
from lightning_ddpm.metrics.frechet import Reduce
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.errors import UserError


def require_ddpm(module: LightningModule) -> DDPM:
    """The module, which must be one that generates images."""
    if not isinstance(module, DDPM):
        raise UserError(f"generating images needs a DDPM, got {type(module).__name__}; take the callback out")
    return module


def require_image_data(trainer: Trainer, what: str) -> ImageDataModule:
    """The trainer's data, which must be images; ``what`` says in an error what is done with them."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{what}, got {type(data).__name__}")
    return data


@contextmanager
def module_on_device(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """For on_fit_end, which a run that goes on at its end has too: last.ckpt is there, Lightning's model on the CPU."""
    device = module.device
    module.to(trainer.strategy.root_device)
    try:
        yield
    finally:
        module.to(device)


def sum_over_ranks(trainer: Trainer) -> Reduce:
    """Sums a tensor over all ranks, on all ranks."""
    return partial(trainer.strategy.reduce, reduce_op="sum")


def prepare_evaluation(
    trainer: Trainer,
    module: LightningModule,
    extractor: FeatureExtractor,
    sampler: Sampler | None,
    guidance: Guidance | None = None,
) -> None:
    """Load the extractor's weights, on the first rank first: what is missing or cannot work is said before any work."""
    model = require_ddpm(module)
    extractor.check_images(*model.image_shape[:2])
    (sampler or model.sampler).nfe(model.schedule.T)  # refuses more steps than there are
    if guidance:
        guidance.check_model(model)
    if trainer.is_global_zero:
        extractor.load()
    trainer.strategy.barrier()
    extractor.load()


def generate_images(
    trainer: Trainer,
    module: LightningModule,
    n: int,
    seed: int,
    batch_size: int,
    sampler: Sampler | None,
    what: str,
    guidance: Guidance | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """This rank's share of n images with the averaged weights: (first of the batch, (b, c, h, w) uint8).

    ``what`` is the name under which progress is said.
    """
    with use_averaged_weights(trainer, module):
        images = generate_batches(
            *(require_ddpm(module), n, seed, batch_size, trainer.global_rank, trainer.world_size),
            sampler=sampler,
            guidance=guidance,
            context=trainer.precision_plugin.forward_context,
        )
        counted = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
        yield from show_progress(counted, -(-n // trainer.world_size), what, trainer.is_global_zero, bar=False)
