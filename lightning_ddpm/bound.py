"""The variational bound of given images under a model, dealt over the ranks: the same on any number of them.

The noise of image i at t depends on (seed, i, t) alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.sampler import ranges
from lightning_ddpm.diffusion import Bound, Denoiser, ReverseVariance, bounds
from lightning_ddpm.generation import evaluating
from lightning_ddpm.images import to_float
from lightning_ddpm.metrics import BoundSums, Likelihood
from lightning_ddpm.module import DDPM
from lightning_ddpm.randomness import ImageNoise

NAMES = "bits_per_dim", "bits_per_dim_unclipped"


def readings(
    model: DDPM, context: Callable[[], AbstractContextManager[object]], label: Tensor | None = None
) -> tuple[Denoiser, Denoiser]:
    """The network, in the precision of its weights and the context, told the classes, read clipped and unclipped."""
    weights = next(model.parameters()).dtype
    told = model.denoiser_given(label)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        with context():
            return told.network(x_t.to(weights), t)

    read = told.of(network)
    return read, read.unclipped()


def bits_per_dim(
    model: DDPM,
    images: ImageDataset,
    n: int,
    variance: ReverseVariance,
    seed: int,
    batch_size: int,
    rank: int,
    world: int,
    reduce: Callable[[Tensor], Tensor],
    context: Callable[[], AbstractContextManager[object]],
    progress: Callable[..., Iterator[list[Bound]]],
) -> dict[str, Likelihood]:
    """The bound, clipped and unclipped from the same network evaluations; every rank must call.

    Where the model has classes, it is told those of the images: the bound is on -log p(x | y).

    Args:
        model: with the weights to use.
        images: the data set.
        n: images to take of it, spread evenly.
        variance: Sigma of the reverse steps.
        seed: of the noise.
        batch_size: images at a time.
        rank, world: which share of how many.
        reduce: sums a tensor over ranks.
        context: entered around the network: the precision that it runs in.
        progress: shows (count, batch) pairs passing by.

    Returns:
        The likelihoods under :data:`NAMES`.
    """
    device = model.device
    sums = [BoundSums(model.schedule.T, device) for _ in NAMES]

    def of_batch(start: int, stop: int) -> list[Bound]:
        chosen, labels = images.__getitems__([i * len(images) // n for i in range(start, stop)])
        x_0 = to_float(chosen.to(device)).to(model.schedule.beta.dtype)
        read = readings(model, context, labels.to(device))
        return bounds(read, variance, x_0, ImageNoise(seed, start, stop, "likelihood"))

    mine = ranges(n, seed, batch_size, rank, world)
    share = sum(stop - start for _, start, stop in mine)
    with evaluating(model):
        counted = ((stop - start, of_batch(start, stop)) for _, start, stop in mine)
        for batch in progress(counted, share):
            for of_reading, bound in zip(sums, batch, strict=True):
                of_reading.update(bound)
    return {name: each.compute(reduce) for name, each in zip(NAMES, sums, strict=True)}
