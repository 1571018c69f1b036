"""How the timesteps t of a training step are sampled."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.diffusion.gaussian_path import GaussianPath
from lightning_ddpm.diffusion.losses import Objective
from lightning_ddpm.diffusion.schedule import require_chain
from lightning_ddpm.diffusion.uncertainty import UncertaintyWeighted
from lightning_ddpm.utils.errors import UserError

Gather = Callable[[Tensor], Tensor]
"""(b,) values of this rank -> the values of all ranks, in any shape."""


class TimestepSampler(nn.Module, ABC):
    """Samples t in 1..T and the importance weights; its history of losses is part of the checkpoint."""

    @abstractmethod
    def setup(self, path: GaussianPath) -> None:
        """Prepare for the model's noise schedule, or other path; called once, when the model is built.

        Raises:
            UserError: times cannot be sampled in this way on this path.
        """

    def check_objective(self, objective: Objective) -> None:
        """Raise a UserError if the objective's losses do not show how often to sample t; before the first step."""
        return

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample n timesteps in [1, T] and their weights, (n,) float32, on the generator's device.

        On a noise schedule timesteps are (n,) int64, on a continuous path real, (n,) float32. Weights other than 1 make
        the mean of the weighted losses an unbiased estimate of the mean loss under uniform t.
        """

    def stratify(self, path: GaussianPath, n: int, generator: torch.Generator) -> Tensor:
        """Sample one t from each of n equally probable parts of [1, T], (n,), at which validation measures the loss.

        So its mean is that of the weighted losses of training, with less variance: over uniform t, unless a
        distribution is itself the weighting.
        """
        return sample_stratified(n, path.T, generator)

    @abstractmethod
    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        """Update the history with the losses of a training step; every rank must call it.

        Args:
            t: (b,) the timesteps.
            losses: (b,) their losses, without the weights.
            gather: gathers values from all ranks.
        """


@final
class UniformTimesteps(TimestepSampler):
    """Samples every t with equal probability; Ho et al. 2020 (arXiv:2006.11239), Algorithm 1."""

    def setup(self, path: GaussianPath) -> None:
        self._path = [path]  # in a list, or the path would be a submodule twice

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._path[0].sample_times(n, generator), torch.ones(n, device=generator.device)

    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        pass


@final
class LossAwareTimesteps(TimestepSampler):
    """Samples t with p(t) proportional to sqrt(E[L_t^2]); Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 18.

    This makes L_vlb less noisy. t is uniform until every t has a full history.

    Args:
        history: number of losses kept for each t.
        uniform_share: share of the samples that stays uniform, so that every t keeps being sampled.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, history: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform_share <= 1:
            raise UserError(
                f"LossAwareTimesteps needs history >= 1 and 0 < uniform_share <= 1, got {history} and {uniform_share}"
            )
        self.history, self.uniform_share = history, uniform_share

    def setup(self, path: GaussianPath) -> None:
        T = require_chain(path, "LossAwareTimesteps' history of losses for each t").T
        self.register_buffer("losses", torch.zeros(T, self.history))
        self.register_buffer("counts", torch.zeros(T, dtype=torch.long))

    def check_objective(self, objective: Objective) -> None:
        if isinstance(objective, UncertaintyWeighted):
            raise UserError(
                "LossAwareTimesteps samples t by the size of its loss, and those of UncertaintyWeighted have one size, "
                "or are negative; use UniformTimesteps, or the objective without UncertaintyWeighted"
            )

    def probabilities(self) -> Tensor:
        """Return the probabilities of t = 1..T, (T,)."""
        T = len(self.counts)
        rms = self.losses.float().square().mean(1).sqrt()
        loss_aware = (1 - self.uniform_share) * rms / rms.sum() + self.uniform_share / T
        return torch.where((self.counts >= self.history).all(), loss_aware, 1 / T)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return index + 1, 1 / (len(p) * p[index])

    def update(self, t: Tensor, losses: Tensor, gather: Gather) -> None:
        index, losses = gather(t).reshape(-1) - 1, gather(losses.detach()).reshape(-1)
        # A batch may contain a t several times: its k-th loss goes k places further in the ring buffer.
        offset = (index[:, None] == index).tril(-1).sum(1)
        self.losses[index, (self.counts[index] + offset) % self.history] = losses.to(self.losses.dtype)
        self.counts.index_add_(0, index, torch.ones_like(index))  # bincount would synchronise with the GPU


QUARTERS = 4
"""Number of equal parts of 1..T whose mean losses are logged."""


def sample_stratified(n: int, T: int, generator: torch.Generator) -> Tensor:
    """Sample one t from each of n equal parts of 1..T, (n,) int64, so that every quarter gets its share for any n."""
    strata = torch.arange(n, device=generator.device) + torch.rand(n, device=generator.device, generator=generator)
    return 1 + (strata * T / n).long().clamp(max=T - 1)


def sum_by_quarter(values: Tensor, t: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Return the sum and the number of the values (b,) with t in each quarter of 1..T, (4,) each."""
    quarter = (t.ceil().long() - 1) * QUARTERS // T
    zeros = values.new_zeros(QUARTERS)
    return zeros.index_add(0, quarter, values), zeros.index_add(0, quarter, torch.ones_like(values))
