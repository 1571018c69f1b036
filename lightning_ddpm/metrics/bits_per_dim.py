"""The variational bound of given images under a model, dealt over the ranks: the same on any number of them.

The noise of image i at t depends on (seed, i, t) alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.data.sharding import split_ranges
from lightning_ddpm.diffusion import Denoiser, ELBOTerms, ReverseVariance, elbos
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import ImageNoise


class BitsPerDimEstimate(NamedTuple):
    """The bound on -log2 p of a set of images, in bits/dim.

    Attributes:
        n: number of images.
        mean: of the bound over them.
        standard_error: of the mean: the standard deviation over images / sqrt(n).
        prior: mean of L_T.
        terms: (T,) float64, mean of every L_{t-1} for t = 1..T, the first being the decoder's.
    """

    n: int
    mean: float
    standard_error: float
    prior: float
    terms: Tensor


class ELBOSums:
    """Sums of bounds over the images of this rank, and their means over those of all ranks; in float64.

    Args:
        T: number of steps.
        device: where the sums are kept.
    """

    def __init__(self, T: int, device: torch.device) -> None:
        # float64 is not on every accelerator: the sums stay on the CPU there
        self.sums = torch.zeros(4 + T, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    def update(self, bound: ELBOTerms) -> None:
        """Take in the bounds of a batch of images."""
        prior, terms = (each.to(self.sums.device).double() for each in bound)
        total = prior + terms.sum(1)
        each = torch.stack([torch.ones_like(total), total, total.square(), prior], dim=1)
        self.sums += torch.cat([each, terms], dim=1).sum(0)

    def compute(self, ranks: Ranks) -> BitsPerDimEstimate:
        """The means; every rank must call.

        Args:
            ranks: the processes whose sums are added.
        """
        sums = ranks.reduce(self.sums.clone()).cpu()
        count = int(sums[0])
        mean, square, prior = (sums[1:4] / count).tolist()
        # the unbiased variance over n; max keeps NaN, its first argument
        standard_error = (max(square - mean * mean, 0.0) / (count - 1)) ** 0.5
        return BitsPerDimEstimate(count, mean, standard_error, prior, sums[4:] / count)


NAMES = "bits_per_dim", "bits_per_dim_unclipped"


def build_denoisers(
    model: DDPM, context: Callable[[], AbstractContextManager[object]], label: Tensor | None = None
) -> tuple[Denoiser, Denoiser]:
    """The network, in the precision of its weights and the context, told the classes, read clipped and unclipped."""
    weights = next(model.parameters()).dtype
    told = model.denoiser_for(label)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        with context():
            return told.network(x_t.to(weights), t)

    read = told.with_network(network)
    return read, read.without_clipping()


def measure_bits_per_dim(
    model: DDPM,
    images: ImageDataset,
    n: int,
    variance: ReverseVariance,
    seed: int,
    batch_size: int,
    ranks: Ranks,
    context: Callable[[], AbstractContextManager[object]],
    progress: Callable[..., Iterator[list[ELBOTerms]]],
) -> dict[str, BitsPerDimEstimate]:
    """The bound, clipped and unclipped from the same network evaluations; every rank must call.

    Where the model has classes, it is told those of the images: the bound is on -log p(x | y).

    Args:
        model: with the weights to use.
        images: the data set.
        n: images to take of it, spread evenly.
        variance: Sigma of the reverse steps.
        seed: of the noise.
        batch_size: images at a time.
        ranks: the processes that share the work.
        context: entered around the network: the precision that it runs in.
        progress: shows (count, batch) pairs passing by.

    Returns:
        The likelihoods under :data:`NAMES`.
    """
    device = model.device
    sums = [ELBOSums(model.schedule.T, device) for _ in NAMES]

    def of_batch(start: int, stop: int) -> list[ELBOTerms]:
        chosen, labels = images.__getitems__([i * len(images) // n for i in range(start, stop)])
        x_0 = to_float(chosen.to(device)).to(model.schedule.beta.dtype)
        read = build_denoisers(model, context, labels.to(device))
        return elbos(read, variance, x_0, ImageNoise(seed, start, stop, "likelihood"))

    mine = split_ranges(n, seed, batch_size, ranks.rank, ranks.world_size)
    share = sum(stop - start for _, start, stop in mine)
    with evaluation_mode(model):
        counted = ((stop - start, of_batch(start, stop)) for _, start, stop in mine)
        for batch in progress(counted, share):
            for of_reading, bound in zip(sums, batch, strict=True):
                of_reading.update(bound)
    return {name: each.compute(ranks) for name, each in zip(NAMES, sums, strict=True)}
