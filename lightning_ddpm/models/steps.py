"""What the training and validation steps of every model share: random numbers, and means over the timesteps.

The random numbers are functions of their keys, so that a resumed run repeats them.
"""

from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.diffusion import QUARTERS, sum_by_quarter
from lightning_ddpm.utils.random import get_run_seed, make_generator, seed_globally


def make_step_generator(module: LightningModule, purpose: str) -> torch.Generator:
    """Return the generator of the current training step on this rank, keyed by purpose, run seed, rank and step."""
    step = module.trainer.fit_loop.total_batch_idx
    return make_generator(module.device, purpose, get_run_seed(), module.global_rank, index=step)


def seed_step(module: LightningModule, purpose: str = "dropout") -> AbstractContextManager[None]:
    """Seed torch's global generators likewise inside the context: dropout layers take no generator."""
    step = module.trainer.fit_loop.total_batch_idx
    return seed_globally(module.device, purpose, get_run_seed(), module.global_rank, index=step)


def make_validation_generator(module: LightningModule, batch_idx: int) -> torch.Generator:
    """Return the generator of a validation batch: it gets the same t and eps every time, on whichever rank it is.

    Two epochs differ by the weights alone.
    """
    return make_generator(module.device, "validate", index=batch_idx * module.trainer.world_size + module.global_rank)


def sample_noise(x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Sample eps ~ N(0, I) in the shape, precision and device of x_0."""
    return torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=generator)


def drop_labels(label: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return the labels (b,), each replaced by -1 with the given probability."""
    return torch.where(torch.rand(len(label), device=label.device, generator=generator) >= probability, label, -1)


def format_quarters(T: int) -> list[str]:
    """Return ``a-b`` for each quarter a < t <= b of 1..T, zero-padded: ``000-250``, ..., ``750-1000`` for T = 1000."""
    edges = [-(-quarter * T // QUARTERS) for quarter in range(QUARTERS + 1)]
    width = len(str(T - 1))
    return [f"{first:0{width}}-{last:0{width}}" for first, last in pairwise(edges)]


def average_by_quarter(name: str, sums: Tensor, counts: Tensor, T: int) -> dict[str, Tensor]:
    """Return the tag ``<name>_t_<a>-<b>`` and the mean of each quarter (4,) that has values."""
    quarters = format_quarters(T)
    return {f"{name}_t_{quarters[q]}": sums[q] / counts[q] for q in counts.nonzero().flatten().tolist()}


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

    def log_means(self, module: LightningModule) -> None:
        """Log the means over all images of all ranks as ``val/<name>`` or ``test/<name>``; every rank must call it."""
        stage = "test" if module.trainer.testing else "val"
        *sums, counts = module.trainer.strategy.reduce(self._sums, reduce_op="sum").float()
        for name, each in zip(self._names, sums, strict=True):
            module.log(f"{stage}/{name}", each.sum() / counts.sum(), prog_bar=name == self._names[0])
        module.log_dict(average_by_quarter(f"{stage}/{self._names[0]}", sums[0], counts, self._T))
