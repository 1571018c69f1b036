"""Nearest training images in feature space, which show whether generated images are copies of training images.

Ho et al. 2020 (arXiv:2006.11239) and Carlini et al. 2023 (arXiv:2301.13188) look at the nearest training images. The
threshold comes from held-out images, which are as near to the training set as new real images are (Meehan et al. 2020,
arXiv:2004.05675).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics.extractors import FeatureExtractor, compute_features
from lightning_ddpm.metrics.feature_table import FeatureTable
from lightning_ddpm.metrics.frechet import Progress
from lightning_ddpm.metrics.image_batches import BATCH, iterate_shard
from lightning_ddpm.utils.distributed import Ranks

QUANTILE = 0.05
"""Share of the held-out images that count as near to the training set."""
MIN_HELD_OUT = round(1 / QUANTILE)
"""The smallest number of held-out images that the quantile is estimated from."""


class NearestNeighbours:
    """The k vectors of a stream that are nearest, by Euclidean distance in float64, to each of n queries.

    Memory is that of the n queries and one block of the stream, however long the stream is. Equally near vectors are
    sorted by index, in whatever order and on whatever rank they arrived.

    Args:
        queries: (n, d).
        k: number of neighbours, at most the length of the stream.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries = queries.to("cpu" if queries.device.type == "mps" else queries.device).double()
        self.distances = self.queries.new_full((len(queries), k), math.inf)
        self.indices = torch.full_like(self.distances, -1, dtype=torch.long)

    def update(self, start: int, vectors: Tensor) -> None:
        """Add vectors start, start + 1, ... of the stream, (b, d)."""
        # From the differences: |a|^2 - 2ab + |b|^2 would lose the digits of the small distances that matter here.
        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(self.queries, vectors.to(self.queries), compute_mode=mode)
        indices = torch.arange(start, start + len(vectors), device=distances.device).expand_as(distances)
        self._keep(torch.cat([self.distances, distances], 1), torch.cat([self.indices, indices], 1))

    def gather(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Return the nearest vectors over the streams of all ranks; every rank must call.

        Returns:
            Their distances, (n, k) float64, nearest first, and their indices, (n, k) int64; on the CPU.
        """
        kept = torch.stack([self.distances, self.indices.double()])  # integers up to 2^53 are exact
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
    """Distances of images, and of held-out images, to the training set.

    Attributes:
        distances: (n, k) float64, from each image to its nearest training images, nearest first.
        indices: (n, k) int64, indices of these training images.
        held_out: (m,) float64, from each held-out image to its nearest training image.
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

        About 0.05 for images as far from it as new real images, 1 for copies; ``None`` where :attr:`near` is.
        """
        return None if self.near is None else float((self.distances[:, 0] <= self.near).double().mean())


@torch.no_grad()
def extract_features(
    extractor: FeatureExtractor, device: torch.device, n: int, images: Iterable[tuple[int, Tensor]], ranks: Ranks
) -> Tensor:
    """Compute the features of n images that are distributed over the ranks; every rank must call.

    Args:
        extractor: loaded feature network.
        device: where features are computed.
        n: number of images of all ranks.
        images: this rank's batches (start, (b, c, h, w) uint8) of images start, start + 1, ...
        ranks: the processes that share the work.

    Returns:
        (n, num_features) float32 on the device.
    """
    extractor.to(device)
    rows = FeatureTable(n, extractor.num_features)
    for start, pixels in images:
        for offset, batch in enumerate(torch.split(pixels, BATCH)):
            rows.put(start + offset * BATCH, compute_features(extractor, batch, device)[0])
    return rows.gather(ranks, device).to(device)


@torch.no_grad()
def find_nearest(
    extractor: FeatureExtractor,
    images: Tensor,
    k: int,
    training: ImageDataset,
    held_out: ImageDataset,
    ranks: Ranks,
    progress: Progress,
    workers: int = 0,
) -> NeighbourDistances:
    """Find, in one pass of the training set, the images nearest to given and to held-out ones; every rank must call.

    Args:
        extractor: loaded feature network.
        images: (n, num_features), features of the given images, as :func:`extract_features` returns them.
        k: number of training images to find for each.
        training: the training set, not augmented.
        held_out: the held-out images; at most n are used, spread evenly.
        ranks: the processes that share the work.
        progress: shows how many training images are done.
        workers: number of processes of each rank that decode image files.
    """
    device, m = images.device, min(len(images), len(held_out))
    batches = (batch for _, batch in iterate_shard(held_out, m, ranks, workers))
    held_out_features = extract_features(extractor, device, m, batches, ranks)
    near_images, near_held_out = NearestNeighbours(images, k), NearestNeighbours(held_out_features, 1)
    shard = iterate_shard(training, len(training), ranks, workers)
    for start, pixels in progress(shard, ranks.share(len(training))):
        features = compute_features(extractor, pixels, device)[0]
        near_images.update(start, features)
        near_held_out.update(start, features)
    return NeighbourDistances(*near_images.gather(ranks), near_held_out.gather(ranks)[0][:, 0])
