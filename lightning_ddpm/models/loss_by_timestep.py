"""Means of a loss, or another value of each image, over the quarters of the timesteps 1..T."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.diffusion import QUARTERS, sum_by_quarter


def format_quarters(T: int) -> list[str]:
    """Return ``a-b`` for each quarter a < t <= b of 1..T, zero-padded: ``000-250``, ..., ``750-1000`` for T = 1000."""
    edges = [-(-quarter * T // QUARTERS) for quarter in range(QUARTERS + 1)]
    width = len(str(T - 1))
    return [f"{first:0{width}}-{last:0{width}}" for first, last in pairwise(edges)]


def average_by_quarter(name: str, sums: Tensor, counts: Tensor, T: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tag ``<name>_t_<a>-<b>`` and the mean of each quarter (4,) that has values."""
    quarters = format_quarters(T)
    for quarter in counts.nonzero().flatten().tolist():
        yield f"{name}_t_{quarters[quarter]}", sums[quarter] / counts[quarter]


class TimestepSums:
    """Sums of values of images by quarter of t, over the batches of an epoch.

    Args:
        T: number of timesteps.
        names: names of the values; the first one is logged in the progress bar and by quarter of t too.
        device: where the values are.
    """

    def __init__(self, T: int, names: tuple[str, ...], device: torch.device) -> None:
        self._T, self._names = T, names
        self._sums = torch.zeros(len(names) + 1, QUARTERS, dtype=torch.float64, device=device)  # the last: images

    def add(self, t: Tensor, *values: Tensor) -> None:
        """Add a batch: its timesteps (b,), and the values (b,) in the order of the names."""
        sums, counts = zip(*(sum_by_quarter(each, t, self._T) for each in values), strict=True)
        self._sums += torch.stack([*sums, counts[0]])

    def log_means(self, module: LightningModule, stage: str) -> None:
        """Log the means over all images of all ranks as ``<stage>/<name>``; every rank must call it."""
        *sums, counts = module.trainer.strategy.reduce(self._sums, reduce_op="sum").float()
        for name, each in zip(self._names, sums, strict=True):
            first = name == self._names[0]
            module.log(f"{stage}/{name}", each.sum() / counts.sum(), prog_bar=first, sync_dist=False)
        for tag, mean in average_by_quarter(f"{stage}/{self._names[0]}", sums[0], counts, self._T):
            module.log(tag, mean, sync_dist=False)
