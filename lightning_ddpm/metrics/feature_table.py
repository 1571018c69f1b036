"""A vector for each of n images, computed on any number of ranks and brought together."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.utils.cache import read_cached, write_cached
from lightning_ddpm.utils.distributed import Ranks

MAX_CACHED_BYTES = 1 << 30
"""Size of the largest table that is cached: 131,072 images of Inception's 2,048 features."""


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

    def read_cached(self, path: Path | None) -> bool:
        """Fill the table from a cached file, and return whether there is one with vectors of this number and length."""
        content = read_cached(path)
        if content is None:
            return False
        rows = np.load(io.BytesIO(content), allow_pickle=False)
        if rows.shape != tuple(self.rows.shape) or rows.dtype != np.float32:
            return False
        self.rows = torch.from_numpy(rows)
        return True


def write_cached_rows(path: Path | None, rows: Tensor) -> None:
    """Cache the vectors of all ranks, (n, width) float32 on the CPU, if they are few enough."""
    if rows.nbytes <= MAX_CACHED_BYTES:
        buffer = io.BytesIO()
        np.save(buffer, rows.numpy())
        write_cached(path, buffer.getvalue())
