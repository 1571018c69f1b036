"""Whether generated images are copies of training images, by their nearest ones in feature space.

Ho et al. 2020 (arXiv:2006.11239) and Carlini et al. 2023 (arXiv:2301.13188) look at the nearest training images. How
near is too near, held-out images say: they are as near to the training set as new real images are (Meehan et al. 2020,
arXiv:2004.05675).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics.extractors import FeatureExtractor
from lightning_ddpm.metrics.frechet import BATCH, iterate_shard, to_contiguous
from lightning_ddpm.metrics.suite import FeatureTable
from lightning_ddpm.utils.distributed import Ranks

QUANTILE = 0.05
"""The share of held-out images that count as near to the training set."""
MIN_HELD_OUT = round(1 / QUANTILE)
"""Held-out images below which that quantile is a guess."""


class NearestNeighbours:
    """The k nearest, by Euclidean distance in float64, of a stream of vectors to each of n given ones.

    Memory is that of the n vectors and one block of the stream, however long the stream. Of equally near vectors the
    first by number comes first, in whatever order and on whatever rank they were seen.

    Args:
        queries: (n, d).
        k: how many, at most as many as the stream has.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries = queries.to("cpu" if queries.device.type == "mps" else queries.device).double()
        self.distances = self.queries.new_full((len(queries), k), math.inf)
        self.indices = torch.full_like(self.distances, -1, dtype=torch.long)

    def update(self, start: int, vectors: Tensor) -> None:
        """See vectors start, start + 1, ... of the stream, (b, d)."""
        # The differences themselves: |a|^2 - 2ab + |b|^2 would lose the small distances that are looked for.
        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(self.queries, vectors.to(self.queries), compute_mode=mode)
        indices = torch.arange(start, start + len(vectors), device=distances.device).expand_as(distances)
        self._keep(torch.cat([self.distances, distances], 1), torch.cat([self.indices, indices], 1))

    def gather(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Those of the streams of all ranks; every rank must call.

        Returns:
            Their distances, (n, k) float64, from the nearest on, and their numbers, (n, k) int64; on the CPU.
        """
        kept = torch.stack([self.distances, self.indices.double()])  # numbers up to 2^53 are exact
        slots = kept.new_zeros(ranks.world_size, *kept.shape)
        slots[ranks.rank] = kept
        distances, indices = ranks.reduce(slots).permute(1, 2, 0, 3).flatten(2)
        self._keep(distances, indices.long())
        return self.distances.cpu(), self.indices.cpu()

    def _keep(self, distances: Tensor, indices: Tensor) -> None:
        indices, order = indices.sort(dim=1)
        distances, nearest = distances.gather(1, order).sort(dim=1, stable=True)
        k = self.distances.shape[1]
        self.distances, self.indices = distances[:, :k], indices.gather(1, nearest)[:, :k]


class NeighbourDistances(NamedTuple):
    """How near images lie to the training set, and how near images lie that the model never saw.

    Attributes:
        distances: (n, k) float64, of each image to its nearest training images, from the nearest on.
        indices: (n, k) int64, which these are.
        held_out: (m,) float64, of each held-out image to its nearest training image.
    """

    distances: Tensor
    indices: Tensor
    held_out: Tensor

    @property
    def near(self) -> float | None:
        """The distance within which 5 per cent of the held-out images lie; ``None`` for fewer than 20 of them."""
        return float(self.held_out.quantile(QUANTILE)) if len(self.held_out) >= MIN_HELD_OUT else None

    @property
    def share(self) -> float | None:
        """The share of images no farther from the training set than 5 per cent of the held-out images are.

        About 0.05 for images as far from it as new real images, 1 for copies. ``None`` as :attr:`near`.
        """
        return None if self.near is None else float((self.distances[:, 0] <= self.near).double().mean())


@torch.no_grad()
def extract_features(
    extractor: FeatureExtractor, device: torch.device, n: int, images: Iterable[tuple[int, Tensor]], ranks: Ranks
) -> Tensor:
    """Features of n images, of which each rank has some; every rank must call.

    Args:
        extractor: loaded feature network.
        device: where features are computed.
        n: number of images of all ranks.
        images: this rank's: (start, (b, c, h, w) uint8), images start, start + 1, ...
        ranks: the processes that share the work.

    Returns:
        (n, num_features) float32 on the device.
    """
    extractor.to(device)
    rows = FeatureTable(n, extractor.num_features)
    for start, pixels in images:
        for offset, batch in enumerate(torch.split(pixels, BATCH)):
            rows.put(start + offset * BATCH, extractor(to_contiguous(batch, device)))
    return rows.gather(ranks, device).to(device)


@torch.no_grad()
def find_nearest(
    extractor: FeatureExtractor,
    images: Tensor,
    k: int,
    training: ImageDataset,
    held_out: ImageDataset,
    ranks: Ranks,
    progress: Callable[..., Iterator[tuple[int, Tensor]]],
) -> NeighbourDistances:
    """Search the training set, once, for the images nearest to given ones and to held-out ones; every rank must call.

    Args:
        extractor: loaded feature network.
        images: (n, num_features), their features, as :func:`extract_features` gives them.
        k: training images to find for each.
        training: the training set as it is, not augmented.
        held_out: the held-out images, of which n at most are taken, spread evenly.
        ranks: the processes that share the work.
        progress: shows (count, batch) pairs passing by.
    """
    device, m = images.device, min(len(images), len(held_out))
    unseen = extract_features(extractor, device, m, (batch for _, batch in iterate_shard(held_out, m, ranks)), ranks)
    of_images, of_held_out = NearestNeighbours(images, k), NearestNeighbours(unseen, 1)
    for start, pixels in progress(iterate_shard(training, len(training), ranks), ranks.share(len(training))):
        features = extractor(to_contiguous(pixels, device))
        of_images.update(start, features)
        of_held_out.update(start, features)
    return NeighbourDistances(*of_images.gather(ranks), of_held_out.gather(ranks)[0][:, 0])
