"""N images from a model and a seed, dealt over the ranks: the same images on any number of them.

Image i depends on (model, seed, i) alone. Batches are fixed ranges of indices, dealt whole, so which rank computes one
changes nothing; another batch size changes rounding inside convolutions, by a grey level at most.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.data.sharding import ImageRange, split_ranges
from lightning_ddpm.diffusion import Guidance, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.console import report


def generate_batches(
    module: DDPM,
    n: int,
    seed: int = 0,
    batch_size: int = 64,
    rank: int = 0,
    world: int = 1,
    sampler: Sampler | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    done: Collection[int] = (),
    guidance: Guidance | None = None,
    labels: Sequence[int] | None = None,
) -> Iterator[tuple[ImageRange, Tensor]]:
    """Yield this rank's images, batch by batch; a batch that does not fit the memory is drawn in smaller parts.

    Args:
        module: the model, with the weights to use.
        n: images in all.
        seed: of the set of images.
        batch_size: images generated at a time.
        rank, world: which share of how many.
        sampler: how; ``None`` for the model's own.
        context: entered around each batch: the precision that the network runs in.
        done: first images of the batches that are there already; the others are dealt over the ranks.
        guidance, labels: towards which classes; see :meth:`DDPM.generate_batches`.

    Yields:
        Which images, as (seed, start, stop), and (stop - start, c, h, w) uint8 on the module's device.
    """
    size = batch_size
    with evaluation_mode(module):
        for batch in [each for each in split_ranges(n, seed, batch_size, 0, 1) if each[1] not in done][rank::world]:
            parts, (_, at, stop) = [], batch
            while at < stop:
                end = min(at + size, stop)
                try:
                    with context():
                        parts.append(module.generate((seed, at, end), sampler, guidance, labels))
                    at = end
                    continue
                except torch.OutOfMemoryError:
                    if end - at == 1:
                        raise
                    size = (end - at) // 2
                report(f"{end - at} images at a time are more than the memory holds; going on with {size}")
                torch.cuda.empty_cache()
            yield batch, torch.cat(parts)


@contextmanager
def evaluation_mode(module: LightningModule) -> Iterator[None]:
    """Evaluation mode and no gradients inside; as it was afterwards, also after an exception."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
