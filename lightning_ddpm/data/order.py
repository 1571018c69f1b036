"""The order of training images in an epoch: a permutation of all of them, or one of blocks that are read together."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.utils.random import make_generator


class Blocks(NamedTuple):
    """Images of which some are read together, so that they are shuffled in a window and not over the whole set.

    Attributes:
        ends: the end of each block among the images of the dataset, (k,) int64.
        window: number of blocks that a process keeps in memory, whose images are shuffled together.
        digest: changes when the images do, wherever their files are.
    """

    ends: np.ndarray
    window: int
    digest: str


class Lanes(NamedTuple):
    """How batches are divided among the processes that read them.

    Attributes:
        processes: number of these, over all ranks: a block is read by one of them.
        batch_size: number of images in a batch.
    """

    processes: int
    batch_size: int


class ImageOrder:
    """The order of n training images in each epoch, which depends on (seed, epoch), and of blocks on the lanes, too.

    Args:
        n: number of images.
        seed: seed of the run.
        blocks: the blocks in which images are read; ``None`` for images that are read one by one.
        lanes: those of the run.
        kept: an epoch that another process has begun, and its lanes, whose order is kept to the end of that epoch.
    """

    def __init__(
        self, n: int, seed: int, blocks: Blocks | None, lanes: Lanes, kept: tuple[int, Lanes] | None = None
    ) -> None:
        self.n, self.seed, self.blocks, self.lanes, self.kept = n, seed, blocks, lanes, kept

    def get_lanes(self, epoch: int) -> Lanes:
        """Return the lanes of an epoch."""
        return self.kept[1] if self.kept and self.kept[0] == epoch else self.lanes

    def __call__(self, epoch: int) -> Tensor:
        """Return the order of an epoch, a permutation (n,) int64."""
        generator = make_generator("cpu", "order", self.seed, index=epoch)
        if self.blocks is None:
            return torch.randperm(self.n, generator=generator)
        return torch.from_numpy(shuffle_blocks(self.blocks, self.get_lanes(epoch), generator))

    def state_dict(self, epoch: int) -> dict[str, Any]:
        """Return what :func:`read_lanes` needs to keep the order of an epoch."""
        return {"lanes": list(self.get_lanes(epoch))} if self.blocks else {}


def read_lanes(state: dict[str, Any]) -> tuple[int, Lanes] | None:
    """Return the epoch of a checkpoint's state of the data, and its lanes; ``None`` if its order depends on none."""
    lanes = state.get("lanes")
    return (state["epoch"], Lanes(*lanes)) if lanes else None


def shuffle_blocks(blocks: Blocks, lanes: Lanes, generator: torch.Generator) -> np.ndarray:
    """Return a permutation (n,) int64 of images in which each block is used in one part of the epoch, by one lane.

    Xu et al. 2022 (CorgiPile, arXiv:2206.05830): the blocks are permuted, and the images of ``window`` successive ones
    are permuted together. Here each lane does so with blocks of its own, and the batches of the lanes take turns; the
    images that do not fill a batch of their lane come last.
    """
    k, n = len(blocks.ends), int(blocks.ends[-1])
    sizes = np.diff(blocks.ends, prepend=0)
    place = np.empty(k, np.int64)  # of each block among all
    place[torch.randperm(k, generator=generator).numpy()] = np.arange(k)
    lane, window = place % lanes.processes, place // lanes.processes // blocks.window
    lane, window = np.repeat(lane, sizes), np.repeat(window, sizes)
    order = np.lexsort((torch.randperm(n, generator=generator).numpy(), window, lane))
    lane = lane[order]
    counts = np.bincount(lane, minlength=lanes.processes)
    batch = (np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)) // lanes.batch_size
    is_last = batch == (counts // lanes.batch_size)[lane]
    return order[np.lexsort((lane, batch, is_last))]
