"""The processes that share the work: which one this is, and a sum over all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all that share the work; without arguments, the only one.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        reduce: sums a tensor over all ranks and returns the sum on all of them; every rank must call it.
    """

    rank: int = 0
    world_size: int = 1
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def share(self, n: int) -> int:
        """Return the most of n items that one rank processes."""
        return -(-n // self.world_size)
