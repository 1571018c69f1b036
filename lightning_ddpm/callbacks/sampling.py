"""What callbacks share that generate images and judge them by a feature network."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.callbacks.ema import use_averaged_weights
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.metrics import FeatureExtractor
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.distributed import Ranks
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


def get_ranks(trainer: Trainer) -> Ranks:
    """Return this process's place among the trainer's ranks."""
    return Ranks(trainer.global_rank, trainer.world_size, partial(trainer.strategy.reduce, reduce_op="sum"))


def prepare_evaluation(
    trainer: Trainer, module: LightningModule, extractor: FeatureExtractor, request: SampleRequest
) -> None:
    """Load the extractor's weights, on the first rank first, and refuse before any work what cannot be evaluated."""
    model = require_ddpm(module)
    extractor.check_images(*model.image_shape[:2])
    (request.sampler or model.sampler).nfe(model.schedule.T)  # refuses more steps than there are
    if request.guidance:
        request.guidance.check_model(model)
    if trainer.is_global_zero:
        extractor.load()
    trainer.strategy.barrier()
    extractor.load()


def generate_images(
    trainer: Trainer, module: LightningModule, request: SampleRequest, what: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield this rank's share of the images with the averaged weights: (first index, (b, c, h, w) uint8).

    Args:
        trainer, module: the run.
        request: which images, and how.
        what: the name under which progress is printed.
    """
    ranks = get_ranks(trainer)
    with use_averaged_weights(trainer, module):
        images = generate_batches(require_ddpm(module), request, ranks, trainer.precision_plugin.forward_context)
        counted = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
        yield from show_progress(counted, ranks.share(request.n), what, ranks.is_first, bar=False)
