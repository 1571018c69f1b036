"""Nearest neighbours from the full matrix of distances."""

import numpy as np
import torch
from torch import Tensor


def brute_force(queries: Tensor, stream: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest distances (n, k) and their indices, ordered by distance and then by index."""
    differences = queries.double().numpy()[:, None] - stream.double().numpy()[None]
    distances = np.sqrt((differences**2).sum(-1))
    order = np.stack([np.lexsort((np.arange(len(stream)), row)) for row in distances])[:, :k]
    return torch.from_numpy(np.take_along_axis(distances, order, 1)), torch.from_numpy(order)
