"""Which images a rank sees, and in which order."""

from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler

from lightning_ddpm.utils.random import make_generator

# Both are DistributedSamplers so that Lightning knows they share images out themselves, and leaves them alone.


class ShuffledShard(DistributedSampler[int]):
    """One rank's share of an epoch's permutation, a function of (seed, epoch) alone.

    Every rank gets equally many images, so up to ``world - 1`` of them sit an epoch out, others each time.

    Args:
        n: number of images.
        seed: of the run.
        rank, world: which share of how many.
        epoch: the first epoch that is asked for.
        seen: images of that epoch, of all ranks together, that are left out: where an interrupted run was.
    """

    def __init__(self, n: int, seed: int, rank: int, world: int, epoch: int = 0, seen: int = 0) -> None:
        super().__init__(range(n), num_replicas=world, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.n, self.begins = n, (epoch, seen)
        self.set_epoch(epoch)

    def __len__(self) -> int:
        """Images of a whole epoch, also where a part of it is left out."""
        return self.n // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.n, generator=make_generator("cpu", "order", self.seed, index=self.epoch))
        left = order[self.begins[1] :] if self.epoch == self.begins[0] else order
        world = self.num_replicas
        return iter(left[self.rank : len(left) // world * world : world].tolist())


class Shard(DistributedSampler[int]):
    """Every world-th batch, none twice and none missing: for figures over a whole set, whatever the number of ranks.

    Args:
        n: number of images.
        batch_size: of the loader that uses this.
        rank, world: which share of how many.
    """

    def __init__(self, n: int, batch_size: int, rank: int, world: int) -> None:
        super().__init__(range(n), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.indices = [i for _, start, stop in split_ranges(n, 0, batch_size, rank, world) for i in range(start, stop)]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


ImageRange = tuple[int, int, int]
"""(seed, start, stop): images start..stop of the set that the seed names."""


def split_ranges(n: int, seed: int, batch_size: int, rank: int, world: int) -> list[ImageRange]:
    """One rank's share of n images to generate: whole batches of fixed indices, none twice and none missing."""
    starts = range(0, n, batch_size)[rank::world]
    return [(seed, start, min(start + batch_size, n)) for start in starts]
