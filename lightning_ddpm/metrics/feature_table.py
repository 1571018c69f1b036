"""A vector for each of n images, computed on any number of ranks and brought together."""

import torch
from torch import Tensor

from lightning_ddpm.utils.distributed import Ranks


class FeatureTable:
    """Vectors of n images in the order of the images; each is computed on one of the ranks.

    Args:
        n: number of images of all ranks.
        width: length of a vector.
    """

    def __init__(self, n: int, width: int) -> None:
        self.rows = torch.zeros(n, width)

    def put(self, start: int, rows: Tensor) -> None:
        """Store the vectors of images start, start + 1, ..."""
        self.rows[start : start + len(rows)] = rows.cpu()

    def gather(self, ranks: Ranks, device: torch.device) -> Tensor:
        """Return the vectors of all ranks, (n, width) float32 on the CPU; every rank must call."""
        # Where one rank has a vector, the others have zeros. The sum may be in place: it gets a copy.
        return ranks.reduce(self.rows.to(device, copy=True)).cpu()
