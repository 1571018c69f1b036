"""The variational bound (ELBO) of given images under a model, on any number of ranks with the same result.

The noise of image i at t depends on (seed, i, t) alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.data.conditioned import convert_image
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.sharding import split_evenly, spread_indices
from lightning_ddpm.diffusion import Denoiser, ELBOTerms, ReverseVariance, elbos, require_chain
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import ImageNoise


class BitsPerDimEstimate(NamedTuple):
    """The variational bound on -log2 p of a set of images, in bits/dim.

    Attributes:
        n: number of images.
        mean: mean of the ELBO over the images.
        standard_error: standard error of the mean: the standard deviation over images / sqrt(n).
        prior: mean of L_T.
        terms: (T,) float64, mean of every L_{t-1} for t = 1..T; the first is the decoder's.
    """

    n: int
    mean: float
    standard_error: float
    prior: float
    terms: Tensor


class ELBOSums:
    """Accumulates the ELBO terms of this rank's images and averages them over all ranks, in float64.

    Args:
        T: number of steps.
        device: where the sums are kept.
    """

    def __init__(self, T: int, device: torch.device) -> None:
        # not every accelerator has float64: without it the sums stay on the CPU
        self.sums = torch.zeros(4 + T, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    def update(self, elbo: ELBOTerms) -> None:
        """Add the ELBO terms of a batch of images."""
        prior, terms = (each.to(self.sums.device).double() for each in elbo)
        total = prior + terms.sum(1)
        each = torch.stack([torch.ones_like(total), total, total.square(), prior], dim=1)
        self.sums += torch.cat([each, terms], dim=1).sum(0)

    def compute(self, ranks: Ranks) -> BitsPerDimEstimate:
        """Return the means over the images of all ranks; every rank must call.

        Args:
            ranks: the processes whose sums are added.
        """
        sums = ranks.reduce(self.sums.clone()).cpu()
        count = int(sums[0])
        mean, square, prior = (sums[1:4] / count).tolist()
        # the unbiased variance over n; max keeps NaN, its first argument
        standard_error = (max(square - mean * mean, 0.0) / (count - 1)) ** 0.5
        return BitsPerDimEstimate(count, mean, standard_error, prior, sums[4:] / count)


Context = Callable[[], AbstractContextManager[object]]
"""A context that is entered around the network, for its precision."""

NAMES = "bits_per_dim", "bits_per_dim_unclipped"


def build_denoisers(
    model: DDPM, context: Context, condition: Condition | Tensor | None = None
) -> tuple[Denoiser, Denoiser]:
    """Return the model's denoiser, given the condition, with and without clipping of the predicted x_0.

    The network runs inside the context and gets x_t in the precision of its weights.
    """
    dtype = next(model.parameters()).dtype
    conditioned = model.denoiser_for(condition)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        with context():
            return conditioned.network(x_t.to(dtype), t)

    denoiser = conditioned.with_network(network)
    return denoiser, denoiser.without_clipping()


def measure_bits_per_dim(
    model: DDPM,
    images: ImageDataset,
    n: int,
    variance: ReverseVariance,
    seed: int,
    batch_size: int,
    ranks: Ranks,
    context: Context,
    progress: Callable[..., Iterator[list[ELBOTerms]]],
) -> dict[str, BitsPerDimEstimate]:
    """Estimate the ELBO with and without clipping, from the same network evaluations; every rank must call.

    A conditional model is given what the images are conditioned on: the ELBO is then on -log p(x | y).

    Args:
        model: the model, with the weights to use.
        images: the dataset.
        n: number of images to use, spread evenly over the dataset.
        variance: Sigma of the reverse steps.
        seed: seed of the noise.
        batch_size: images processed at a time.
        ranks: the processes that share the work.
        context: entered around the network, for its precision.
        progress: passes on the batches of (count, batch) pairs and shows how many are done.

    Returns:
        The estimates under :data:`NAMES`.
    """
    device, chosen = model.device, spread_indices(n, len(images))
    schedule = require_chain(model.schedule, "the variational bound")
    sums = [ELBOSums(schedule.T, device) for _ in NAMES]

    def compute_batch(start: int, stop: int) -> list[ELBOTerms]:
        pixels, given = images.__getitems__(chosen[start:stop])
        x_0 = model.values.to_float(pixels.to(device)).to(schedule.beta.dtype)
        denoisers = build_denoisers(
            model, context, convert_image(as_condition(given).to(device), model.condition_values)
        )
        return elbos(denoisers, variance, x_0, ImageNoise(seed, start, stop, "likelihood"))

    shard = split_evenly(n, seed, batch_size, ranks)
    with evaluation_mode(model):
        batches = ((stop - start, compute_batch(start, stop)) for _, start, stop in shard)
        for batch in progress(batches, sum(stop - start for _, start, stop in shard)):
            for each, elbo in zip(sums, batch, strict=True):
                each.update(elbo)
    return {name: each.compute(ranks) for name, each in zip(NAMES, sums, strict=True)}
