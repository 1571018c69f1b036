"""Which t a training step learns from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.utils.errors import UserError

Gather = Callable[[Tensor], Tensor]
"""(b,) of this rank -> the same of all ranks together, in any shape."""


class TimestepSampler(nn.Module, ABC):
    """Draws t in 1..T, and the weights that undo the choice; what it remembers of the losses is in the checkpoint."""

    @abstractmethod
    def setup(self, T: int) -> None:
        """Get ready for a schedule of T steps; called once, when the model is built."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n steps (n,) int64 in 1..T, and the weights (n,) float32 under which the mean loss is that of uniform t.

        On the generator's device.
        """

    @abstractmethod
    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        """Hear what came of it.

        Args:
            t: (b,) the steps.
            losses: (b,) their losses, without the weights.
            gather: brings all ranks' together; every rank calls.
        """


@final
class UniformTimesteps(TimestepSampler):
    """Every t equally often; Ho et al. 2020 (arXiv:2006.11239), Algorithm 1."""

    def setup(self, T: int) -> None:
        self.T = T

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t = torch.randint(1, self.T + 1, (n,), device=generator.device, generator=generator)
        return t, torch.ones(n, device=generator.device)

    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        pass


@final
class LossAwareTimesteps(TimestepSampler):
    """t in proportion to sqrt(E[L_t^2]): L_vlb is less noisy so; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 18.

    Uniform until every t has a full history.

    Args:
        history: losses kept for each t.
        uniform: share of the draws that stays uniform, lest a t be forgotten.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, history: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform_share <= 1:
            raise UserError(
                f"LossAware needs a history of at least 1 and a uniform share in (0, 1], got {history} and {uniform_share}"
            )
        self.history, self.uniform_share = history, uniform_share

    def setup(self, T: int) -> None:
        self.register_buffer("losses", torch.zeros(T, self.history))
        self.register_buffer("counts", torch.zeros(T, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """(T,) of t = 1..T."""
        T = len(self.counts)
        weights = self.losses.float().square().mean(1).sqrt()
        aware = (1 - self.uniform_share) * weights / weights.sum() + self.uniform_share / T
        return torch.where((self.counts >= self.history).all(), aware, 1 / T)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return index + 1, 1 / (len(p) * p[index])

    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        index, losses = gather(t).reshape(-1) - 1, gather(losses.detach()).reshape(-1)
        # The k-th loss of a t in this batch goes k places on from where its history stands.
        place = (index[:, None] == index).tril(-1).sum(1)
        self.losses[index, (self.counts[index] + place) % self.history] = losses.to(self.losses.dtype)
        self.counts.index_add_(0, index, torch.ones_like(index))  # bincount would wait for the largest


QUARTERS = 4


def sample_stratified(n: int, T: int, generator: torch.Generator) -> Tensor:
    """One t from each of n equal parts of 1..T, (n,) int64: every quarter gets its share, whatever n is."""
    ranks = torch.arange(n, device=generator.device) + torch.rand(n, device=generator.device, generator=generator)
    return 1 + (ranks * T / n).long().clamp(max=T - 1)


def sum_by_quarter(values: Tensor, t: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Sums and counts of the values (b,) with t in each quarter of 1..T, (4,) each."""
    quarter = (t - 1) * QUARTERS // T
    zeros = values.new_zeros(QUARTERS)
    return zeros.index_add(0, quarter, values), zeros.index_add(0, quarter, torch.ones_like(values))
