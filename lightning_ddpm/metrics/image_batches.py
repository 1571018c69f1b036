"""Batches of a dataset's images for feature networks, in a fixed size and order, read by worker processes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from lightning_ddpm.data.datasets import ImageDataset, MemoryDataset
from lightning_ddpm.data.sharding import split_ranges, spread_indices
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

BATCH = 64
"""Batch size of feature networks; fixed, because it changes the rounding of features."""


def iterate_shard(
    data: ImageDataset, n: int, ranks: Ranks, workers: int = 0
) -> Iterator[tuple[int, tuple[int, Tensor]]]:
    """Yield this rank's batches of :data:`BATCH` of n images that are spread evenly over a dataset.

    Args:
        data: the dataset.
        n: number of images.
        ranks: the processes that share the work.
        workers: number of processes that read ahead; the batches are the same.

    Yields:
        The number of images, and (index of the first one among the n, (b, c, h, w) in their own values).
    """
    chosen, ranges = spread_indices(n, len(data)), split_ranges(n, 0, BATCH, ranks)
    parts = [chosen[start:stop] for _, start, stop in ranges]
    if workers := count_workers(data, workers):
        batches = _read_ahead(data, parts, workers)
    else:
        batches = (data.__getitems__(part)[0] for part in parts)
    for (_, start, stop), pixels in zip(ranges, batches, strict=True):
        yield stop - start, (start, pixels)


def count_workers(data: ImageDataset, workers: int) -> int:
    """Return the number of processes that read ahead: none for images that are in memory already."""
    return 0 if isinstance(data, MemoryDataset) else workers


def _read_ahead(data: ImageDataset, parts: list[list[int]], workers: int) -> Iterator[Tensor]:
    """Yield the images at each part of the indices, read by worker processes, in order."""
    loader = DataLoader(
        data,  # its __getitems__ returns batches
        batch_sampler=parts,
        num_workers=workers,
        collate_fn=default_convert,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for part in parts:
        try:
            yield next(batches)[0]
        except UserError:
            data.__getitems__(part)  # raises the error without the traceback of the worker
            raise
