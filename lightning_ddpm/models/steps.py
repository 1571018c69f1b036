"""What the training and validation steps of every model share: random numbers, and means over the timesteps.

The random numbers are functions of their keys, so that a resumed run repeats them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.sharding import StepPart
from lightning_ddpm.diffusion import QUARTERS, sum_by_quarter
from lightning_ddpm.utils.random import PositionRandom, get_run_seed, seed_globally


class StepBatch:
    """A batch of a training step: its place among the step's images, and the random numbers that follow from it.

    Random numbers of a step are keyed by the run's seed, the step and the position of an image in it, not by the rank:
    a step of as many images is the same on any number of devices and in accumulated batches of any size. Dropout inside
    the network is keyed by the batch, and is the same for batches of equal size.

    Args:
        module: the module that is trained.
        images: number of images in the batch.
        batch_idx: index of the batch in its epoch.
    """

    def __init__(self, module: LightningModule, images: int, batch_idx: int) -> None:
        self._module, self._batch_idx = module, batch_idx
        self._data = get_image_data(module)
        self._part = self._data.locate_batch(batch_idx) if self._data else _place_alone(module, images, batch_idx)

    @property
    def total(self) -> int | None:
        """Number of the step's images, over all ranks and accumulated batches; ``None`` where it is not known."""
        return self._part.total if self._data else None

    @property
    def is_first(self) -> bool:
        """Whether the batch is this rank's first one of its step."""
        return self._part.batch < self._module.trainer.world_size

    def generate(self, purpose: str) -> PositionRandom:
        """Return the random numbers of these images for a purpose, which may be any word."""
        return self._part.generate(self._module.device, purpose, self._module.trainer.global_step)

    def seed_globally(self, purpose: str = "dropout") -> AbstractContextManager[None]:
        """Seed torch's global generators inside the context, by the batch: dropout layers take no generator."""
        module = self._module
        key = get_run_seed(), self._part.batch
        return seed_globally(module.device, purpose, *key, index=module.trainer.global_step)

    def gather(self, values: Tensor) -> Tensor:
        """Return values of all images of the step (n, ...), in their order, from those of this rank's batches.

        Every rank must call it at the last batch of the step.
        """
        trainer = self._module.trainer
        if trainer.world_size == 1:
            return values
        if self._data is None:
            return self._module.all_gather(values).flatten(0, 1)  # type: ignore[union-attr]
        locate, first = self._data.locate_batch, self._batch_idx - self._batch_idx % trainer.accumulate_grad_batches
        parts = [
            [locate(batch, rank) for batch in range(first, self._batch_idx + 1)] for rank in range(trainer.world_size)
        ]
        sizes = [[part.stop - part.start for part in each] for each in parts]
        longest = max(sum(each) for each in sizes)  # ranks may have one image less at the end of an epoch
        padded = torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])])
        gathered: Tensor = self._module.all_gather(padded)  # type: ignore[assignment]
        split = [each[: sum(size)].split(size) for each, size in zip(gathered, sizes, strict=True)]
        return torch.cat([each for batches in zip(*split, strict=True) for each in batches])


def join(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the values of all batches as one; those of a single batch are not copied."""
    if len(batches) == 1:
        return batches[0]
    first, second = zip(*batches, strict=True)
    return torch.cat(first), torch.cat(second)


def get_image_data(module: LightningModule) -> ImageDataModule | None:
    """Return the trainer's data if they are an ImageDataModule."""
    data = getattr(module.trainer, "datamodule", None)
    return data if isinstance(data, ImageDataModule) else None


def _place_alone(module: LightningModule, images: int, batch_idx: int) -> StepPart:
    """Return positions that no other batch of the step has, for data whose order is not known."""
    trainer = module.trainer
    number = batch_idx % trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
    start = number * 2**20 * PositionRandom.BLOCK
    return StepPart(start, start + images, start + images, number)


def generate_validation(module: LightningModule, images: int, batch_idx: int) -> PositionRandom:
    """Return the random numbers of a validation batch: the same every time, and on any number of devices.

    Two epochs differ by the weights alone. The numbers of as many images as a training step has are generated at once.
    """
    if data := get_image_data(module):
        index, part = data.locate_held_out(batch_idx, images)
    else:
        index = batch_idx * module.trainer.world_size + module.global_rank
        part = StepPart(0, images, images, 0)
    place = {"start": part.start, "stop": part.stop, "total": part.total}
    return PositionRandom(module.device, "validate", index=index, block=None, **place)


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
