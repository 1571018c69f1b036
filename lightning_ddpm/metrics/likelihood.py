"""The variational bound over a data set: its mean, how sure that is, and the mean of every term."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.diffusion import Bound


class Likelihood(NamedTuple):
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


class BoundSums:
    """Sums of bounds over the images of this rank, and their means over those of all ranks; in float64.

    Args:
        T: number of steps.
        device: where the sums are kept.
    """

    def __init__(self, T: int, device: torch.device) -> None:
        # float64 is not on every accelerator: the sums stay on the CPU there
        self.sums = torch.zeros(4 + T, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    def update(self, bound: Bound) -> None:
        """Take in the bounds of a batch of images."""
        prior, terms = (each.to(self.sums.device).double() for each in bound)
        total = prior + terms.sum(1)
        each = torch.stack([torch.ones_like(total), total, total.square(), prior], dim=1)
        self.sums += torch.cat([each, terms], dim=1).sum(0)

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> Likelihood:
        """The means; every rank must call.

        Args:
            reduce: sums a tensor over all ranks, on all ranks.
        """
        sums = reduce(self.sums.clone()).cpu()
        count = int(sums[0])
        mean, square, prior = (sums[1:4] / count).tolist()
        # the unbiased variance over n; max keeps NaN, its first argument
        standard_error = (max(square - mean * mean, 0.0) / (count - 1)) ** 0.5
        return Likelihood(count, mean, standard_error, prior, sums[4:] / count)
