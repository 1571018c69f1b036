"""What callbacks need of the trainer and of one another: model, data, ranks, averaged weights, generated images."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ddpm.data import ImageDataModule, ImageDataset
from lightning_ddpm.data.value_range import DTYPES
from lightning_ddpm.metrics import FeatureExtractor
from lightning_ddpm.metrics.extractors import check_extractor
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.image_generator import (
    ImageGenerator,
    check_request,
    count_nfe,
    name_sampler,
    require_generator,
)
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import count, show_progress
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.signals import get_signal

Item = TypeVar("Item")


class InterruptionError(Exception):
    """A signal has ended work between two steps of training, on all ranks, before it was done.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@runtime_checkable
class KeepsAveragedWeights(Protocol):
    """A callback that keeps an average of the weights."""

    def update_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        """Average the last step's weights too, if the callback's own hook has not run yet."""

    def use_average(self, module: LightningModule) -> AbstractContextManager[None]:
        """Give the module the averaged weights inside the context and its own afterwards."""


@runtime_checkable
class HasEvaluated(Protocol):
    """A callback that evaluates the model during training.

    Attributes:
        evaluated_step: the optimizer step after which it last did so; -1 before the first evaluation.
        last_metrics: what it then logged.
    """

    evaluated_step: int
    last_metrics: dict[str, float]


def require_ddpm(module: LightningModule, what: str) -> DDPM:
    """Return the module, which must be a DDPM; ``what`` names in the error what needs one."""
    if not isinstance(module, DDPM):
        raise UserError(f"{what} needs a DDPM, got {type(module).__name__}; remove the callback")
    return module


def require_image_data(trainer: Trainer, what: str) -> ImageDataModule:
    """Return the trainer's data, which must be images; ``what`` describes in the error what they are needed for."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{what}, got {type(data).__name__}")
    return data


def require_held_out(trainer: Trainer, what: str, most: int | None) -> tuple[ImageDataset, int]:
    """Return the held-out images, and how many of them bits/dim and its standard error are measured on.

    Args:
        trainer: the run.
        what: describes in the error what images are needed for.
        most: the largest number of them; ``None`` for all.

    Raises:
        UserError: there are fewer than two.
    """
    images = require_image_data(trainer, what).held_out
    n = min(most or len(images), len(images))
    if n < 2:
        raise UserError(f"the standard error of bits/dim needs at least 2 held-out images, got {n}; hold out more")
    return images, n


def get_ranks(trainer: Trainer) -> Ranks:
    """Return this process's place among the trainer's ranks."""
    return Ranks(trainer.global_rank, trainer.world_size, partial(trainer.strategy.reduce, reduce_op="sum"))


def find_evaluations(trainer: Trainer) -> list[HasEvaluated]:
    """Return the callbacks that evaluate the model during training."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if isinstance(each, HasEvaluated)]


def find_average(trainer: Trainer) -> KeepsAveragedWeights | None:
    """Return the callback that keeps averaged weights, or ``None``."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, KeepsAveragedWeights)), None)


@contextmanager
def use_averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Give the module the averaged weights inside the context, if a callback keeps any."""
    average = find_average(trainer)
    if average is None:
        yield
        return
    average.update_if_due(trainer, module)
    with average.use_average(module):
        yield


def log_now(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Send metrics of the step just done to all loggers, whatever ``log_every_n_steps`` is."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step - 1)  # Lightning counts from 0


def estimate_seconds(trainer: Trainer, work: Callable[[], Tensor], n: int, batch_size: int) -> float:
    """Estimate how long all ranks take to do the work of one batch for n images: the second of two calls is timed."""
    float(work().sum())  # waits for the device
    started = time.monotonic()
    float(work().sum())
    return (time.monotonic() - started) * get_ranks(trainer).share(math.ceil(n / batch_size))


def until_signal(trainer: Trainer, batches: Iterable[Item]) -> Iterator[Item]:
    """Yield the batches of one rank's share; every rank must read its own to the end.

    Raises:
        InterruptionError: a rank has received a signal in fit. It yields no more; the others finish their share.
    """
    number = 0
    for each in batches:
        if trainer.state.fn == "fit" and (number := int(get_signal() or 0)):
            break
        yield each
    mine = torch.tensor(number, device=trainer.strategy.root_device)
    if number := int(trainer.strategy.reduce(mine, reduce_op="max")):
        raise InterruptionError(number)


def show_work(trainer: Trainer, what: str) -> Callable[[Iterable[tuple[int, Item]], int], Iterator[Item]]:
    """Return a function of the batches and their number of images that prints progress and ends at a signal."""

    def show(batches: Iterable[tuple[int, Item]], total: int) -> Iterator[Item]:
        yield from until_signal(trainer, show_progress(batches, total, what, trainer.is_global_zero, bar=False))

    return show


def describe_work(model: ImageGenerator, request: SampleRequest) -> str:
    """Return the number of images of a request, and what each of them costs."""
    nfe = count_nfe(model, request)
    if nfe is not None:
        return f"{request.n} images x {count(nfe, 'network evaluation')}"
    if isinstance(model, DDPM):
        return f"{request.n} images with as many network evaluations as each needs"
    return f"{request.n} images of {name_sampler(model)}"


def prepare_evaluation(
    trainer: Trainer, module: LightningModule, extractor: FeatureExtractor | None, request: SampleRequest
) -> None:
    """Load the extractor's weights, on the first rank first, and refuse before any work what cannot be evaluated."""
    model = require_generator(module)
    check_request(model, request)
    if extractor is None:
        return
    check_extractor(extractor, model.image_shape, DTYPES[model.values.dtype])
    if trainer.is_global_zero:
        extractor.load()
    trainer.strategy.barrier()
    extractor.load()


def generate_images(
    trainer: Trainer, module: LightningModule, request: SampleRequest, what: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield this rank's share of the images with the averaged weights: (first index, (b, c, h, w)).

    They have the data's own values.

    Args:
        trainer, module: the run.
        request: which images, and how.
        what: the name under which progress is printed.

    Raises:
        InterruptionError: see :func:`until_signal`.
    """
    ranks = get_ranks(trainer)
    with use_averaged_weights(trainer, module):
        images = generate_batches(require_generator(module), request, ranks, trainer.precision_plugin.forward_context)
        counted = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
        yield from show_work(trainer, what)(counted, ranks.share(request.n))
