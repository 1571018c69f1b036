"""Divide the images of a dataset among ranks, in a reproducible order."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.utils.data import DistributedSampler, SequentialSampler

from lightning_ddpm.data.class_labels import GOLDEN
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import make_generator

# All subclass DistributedSampler so that Lightning does not replace them by its own, and those of a fixed order
# SequentialSampler, so that it does not under overfit_batches either.


class ShuffledShard(DistributedSampler[int]):
    """Sample one rank's part of a permutation of the images; the permutation depends on (seed, epoch) alone.

    Every rank gets the same number of images, so up to ``world_size - 1`` images are skipped in an epoch, different
    ones each time.

    Args:
        n: number of images.
        seed: seed of the run.
        ranks: this rank among all.
        epoch: the first epoch.
        seen: number of images to skip at the start of that epoch, summed over ranks: those that an interrupted run has
            trained on.
    """

    def __init__(self, n: int, seed: int, ranks: Ranks, epoch: int = 0, seen: int = 0) -> None:
        super().__init__(range(n), num_replicas=ranks.world_size, rank=ranks.rank, seed=seed)  # type: ignore[arg-type]
        self.n, self.begins = n, (epoch, seen)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        """Return this rank's number of images in a whole epoch, even if a part of it is skipped."""
        return self.n // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.n, generator=make_generator("cpu", "order", self.seed, index=self.epoch))
        left = order[self.begins[1] :] if self.epoch == self.begins[0] else order
        stop = len(left) // self.num_replicas * self.num_replicas
        return iter(left[self.rank : stop : self.num_replicas].tolist())


class RepeatedShard(ShuffledShard, SequentialSampler):
    """Sample the images of the first epoch in every epoch, for ``overfit_batches``."""

    def __iter__(self) -> Iterator[int]:
        seen = self.begins[1] if self.epoch == self.begins[0] else 0
        return iter(ShuffledShard(self.n, self.seed, Ranks(self.rank, self.num_replicas), 0, seen))


class Shard(DistributedSampler[int], SequentialSampler):
    """Sample every ``world_size``-th batch in order, so that all ranks see every image exactly once.

    Metrics over a whole dataset then do not depend on the number of ranks.

    Args:
        n: number of images.
        batch_size: batch size of the loader.
        ranks: this rank among all.
        first: number of images, spread evenly over all, that come before the others; ``None`` for all in order.
    """

    def __init__(self, n: int, batch_size: int, ranks: Ranks, first: int | None = None) -> None:
        super().__init__(range(n), num_replicas=ranks.world_size, rank=ranks.rank, shuffle=False)  # type: ignore[arg-type]
        chosen = spread_indices(n if first is None else min(first, n), n)
        order = [*chosen, *sorted(set(range(n)).difference(chosen))]
        self.indices = [i for _, start, stop in split_ranges(n, 0, batch_size, ranks) for i in order[start:stop]]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def spread_indices(n: int, total: int) -> list[int]:
    """Return the indices of n of ``total`` images that stand for all of them: one from each of n equal parts.

    Where in its part an image lies varies, so that a set whose classes take turns is not sampled in step with them. All
    images are returned in order for n = total.
    """
    if not n:
        return []
    places = [(i * GOLDEN) % 1 for i in range(n)]
    ends = [i * total // n for i in range(n + 1)]
    return [first + int(place * (end - first)) for place, (first, end) in zip(places, pairwise(ends), strict=True)]


ImageRange = tuple[int, int, int]
"""(seed, start, stop): generated images ``range(start, stop)`` of this seed."""


def split_ranges(n: int, seed: int, batch_size: int, ranks: Ranks) -> list[ImageRange]:
    """Return one rank's batches of n images to generate; all ranks generate every image exactly once.

    A batch holds the same indices whatever the number of ranks.
    """
    starts = range(0, n, batch_size)[ranks.rank :: ranks.world_size]
    return [(seed, start, min(start + batch_size, n)) for start in starts]
