"""Divide the images of a dataset among ranks, in a reproducible order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.utils.data import DistributedSampler, SequentialSampler

from lightning_ddpm.data.class_labels import GOLDEN
from lightning_ddpm.data.order import ImageOrder, Lanes
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom, get_run_seed

# All subclass DistributedSampler so that Lightning does not replace them by its own, and those of a fixed order
# SequentialSampler, so that it does not under overfit_batches either.


@dataclass(frozen=True)
class StepPart:
    """The positions of a batch among the images of its optimizer step, over all ranks and accumulated batches.

    Attributes:
        start, stop: the positions, as ``range(start, stop)``.
        total: number of the step's images.
        batch: number of the batch among those of the step, over all ranks.
    """

    start: int
    stop: int
    total: int
    batch: int

    def generate(self, device: torch.device, purpose: str, step: int) -> PositionRandom:
        """Return the random numbers of these images for a purpose, keyed by the run's seed and the step."""
        place = {"start": self.start, "stop": self.stop, "total": self.total}
        return PositionRandom(device, purpose, get_run_seed(), index=step, **place)


class ShuffledShard(DistributedSampler[int]):
    """Sample one rank's part of a permutation of the images, by default one that depends on (seed, epoch) alone.

    The ranks take consecutive batches, so that an optimizer step has the same images on any number of devices, if its
    number of images stays the same. The last images of an epoch are divided among the ranks, whose batches then differ
    by up to one image; fewer images than ranks are skipped, different ones in each epoch.

    Args:
        n: number of images.
        seed: seed of the run.
        ranks: this rank among all.
        batch_size: number of images in a batch.
        epoch: the first epoch.
        seen: number of images to skip at the start of that epoch, summed over ranks: those that an interrupted run has
            trained on.
        multiple: an epoch's last images are skipped so that a multiple of this number is left; 1 for none.
        order: the permutation of each epoch; ``None`` for one of all images.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        ranks: Ranks,
        batch_size: int,
        epoch: int = 0,
        seen: int = 0,
        multiple: int = 1,
        order: ImageOrder | None = None,
    ) -> None:
        super().__init__(range(n), num_replicas=ranks.world_size, rank=ranks.rank, seed=seed)  # type: ignore[arg-type]
        self.n, self.begins, self.multiple = n, (epoch, seen), multiple
        self.order = order or ImageOrder(n, seed, None, Lanes(1, batch_size))
        self.batch_size, self.group = batch_size, batch_size * ranks.world_size
        self.set_epoch(epoch)

    def __len__(self) -> int:
        """Return this rank's number of images in a whole epoch, even if a part of it is skipped."""
        used = self._count_used(self.n)
        start, stop = self._locate(used // self.group, used, self.rank)
        return used // self.group * self.batch_size + stop - start

    def __iter__(self) -> Iterator[int]:
        return self._take(self.epoch)

    def count_batches_done(self) -> int:
        """Return the number of batches of the current epoch that were trained on before, in the current batch size."""
        return self._count_batches(self.n) - self._count_batches(self._left)

    def count_seen(self, batches: int) -> int:
        """Return the number of images, summed over ranks, up to this number of batches of the current epoch."""
        return self.n - self._left + (batches - self.count_batches_done()) * self.group

    def list_images(self, batch: int) -> list[int]:
        """Return the indices of the images in a batch of this rank, by its index in the current epoch."""
        start = (batch - self.count_batches_done()) * self.batch_size
        return list(self)[start : start + self.batch_size]

    def locate(self, batch: int, accumulate: int, batches: int, rank: int | None = None) -> StepPart:
        """Return where a batch stands in its optimizer step.

        Args:
            batch: index of the batch in the current epoch.
            accumulate: number of batches of a step on each rank.
            batches: number of batches in the epoch.
            rank: whose batch it is; ``None`` for this rank's.
        """
        rank, done = self.rank if rank is None else rank, self.count_batches_done()
        used = self._count_used(self._left)
        if batches > done:  # else the run was resumed with a lower limit_train_batches, which Lightning counts anew
            used = min(used, (batches - done) * self.group)
        # A checkpoint of on_train_end lets Lightning count on from the last batch of an epoch that is over.
        batch = (batch - done) % max(1, -(-used // self.group))
        start, stop = self._locate(batch, used, rank)
        step, first = accumulate * self.group, batch // accumulate * accumulate * self.group
        number = batch % accumulate * self.num_replicas + rank
        return StepPart(start - first, stop - first, min(step, used - first), number)

    @property
    def _left(self) -> int:
        return self.n - (self.begins[1] if self.epoch == self.begins[0] else 0)

    def _take(self, epoch: int) -> Iterator[int]:
        """Return this rank's part of what is left of the current epoch, in the order of the given one."""
        used, left = self._count_used(self._left), self.order(epoch)[self.n - self._left :]
        places = (self._locate(batch, used, self.rank) for batch in range(self._count_batches(self._left)))
        for start, stop in places:  # a batch at a time: a list of all would take 36 bytes an image
            yield from left[start:stop].numpy().tolist()

    def _locate(self, batch: int, used: int, rank: int) -> tuple[int, int]:
        """Return the places of a rank's batch among the images that are used."""
        first = batch * self.group
        share, more = divmod(min(self.group, used - first), self.num_replicas)
        start = first + rank * share + min(rank, more)
        return start, start + share + (rank < more)

    def _count_used(self, images: int) -> int:
        """Return the number of images trained on, of the given number at the end of an epoch."""
        images -= images % self.multiple
        rest = images % self.group
        return images - rest if rest < self.num_replicas else images

    def _count_batches(self, images: int) -> int:
        return -(-self._count_used(images) // self.group)


class RepeatedShard(ShuffledShard, SequentialSampler):
    """Sample the images of the first epoch in every epoch, for ``overfit_batches``."""

    def __iter__(self) -> Iterator[int]:
        return self._take(0)


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


def count_used(n: int, batch: int, limit: int | float, name: str) -> int:
    """Return how many of n held-out images a limit leaves.

    Args:
        n: number of images.
        batch: number of images in a batch, over all ranks.
        limit: a number of batches, or a share of them.
        name: the option's name, without ``_batches``.

    Raises:
        UserError: the share is less than a batch.
    """
    batches = limit if isinstance(limit, int) else int(-(-n // batch) * limit)
    if limit and not batches:
        raise UserError(
            f"--trainer.{name}_batches {limit:g} of the {-(-n // batch)} batches of held-out images is less than one; "
            "give a number of batches, or a larger share"
        )
    return min(batches * batch, n)


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


def split_evenly(n: int, seed: int, batch_size: int, ranks: Ranks) -> list[ImageRange]:
    """Return one rank's batches of n images such that no rank waits for another that has a batch more.

    The batches are those of :func:`split_ranges` if all ranks get equally many of them, as a single one does. Otherwise
    they are smaller and differ by one image at most: a multiple of the number of ranks, or one image each.
    """
    batches = -(-n // batch_size)
    if batches % ranks.world_size == 0:
        return split_ranges(n, seed, batch_size, ranks)
    batches = min(ranks.share(batches) * ranks.world_size, n)
    ends = [i * n // batches for i in range(batches + 1)]
    return [(seed, start, stop) for start, stop in pairwise(ends)][ranks.rank :: ranks.world_size]


def split_ranges(n: int, seed: int, batch_size: int, ranks: Ranks) -> list[ImageRange]:
    """Return one rank's batches of n images to generate; all ranks generate every image exactly once.

    A batch holds the same indices whatever the number of ranks.
    """
    starts = range(0, n, batch_size)[ranks.rank :: ranks.world_size]
    return [(seed, start, min(start + batch_size, n)) for start in starts]
