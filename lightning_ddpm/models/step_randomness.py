"""Random numbers of training and validation steps: functions of their keys, so that a resumed run repeats them."""

from contextlib import AbstractContextManager

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.utils.random import get_run_seed, make_generator, seed_globally


class StepRandomness:
    """The random numbers of the current training step on this rank, keyed by purpose, run seed, rank and step.

    Args:
        module: the module in training.
        device: where the numbers are generated.
        purpose: keeps the numbers of different modules apart.

    Attributes:
        generator: for t and eps, in this order.
    """

    def __init__(self, module: LightningModule, device: torch.device, purpose: str) -> None:
        self._device, self._key = device, (get_run_seed(), module.global_rank)
        self._step = module.trainer.fit_loop.total_batch_idx
        self.generator = make_generator(device, purpose, *self._key, index=self._step)

    def drop_labels(self, label: Tensor, probability: float) -> Tensor:
        """Return the labels (b,), each replaced by -1 with the given probability."""
        generator = make_generator(self._device, "label dropout", *self._key, index=self._step)
        kept = torch.rand(len(label), device=self._device, generator=generator) >= probability
        return torch.where(kept, label, -1)

    def seed_dropout(self) -> AbstractContextManager[None]:
        """Seed torch's global generators inside the context: dropout layers take no generator."""
        return seed_globally(self._device, "dropout", *self._key, index=self._step)


def make_validation_generator(module: LightningModule, device: torch.device, batch_idx: int) -> torch.Generator:
    """Return the generator of a validation batch: it gets the same t and eps every time, on whichever rank it is.

    Two epochs differ by the weights alone.
    """
    return make_generator(device, "validate", index=batch_idx * module.trainer.world_size + module.global_rank)


def sample_noise(x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Sample eps ~ N(0, I) in the shape, precision and device of x_0."""
    return torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=generator)
