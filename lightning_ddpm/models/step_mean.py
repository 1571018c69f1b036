"""The gradient of an optimizer step as the mean over its images, whichever batches and ranks have them."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lightning_ddpm.models.optimizer import collect_gradients
from lightning_ddpm.models.steps import StepBatch, get_image_data
from lightning_ddpm.utils.lightning_internals import is_accumulating, is_logging_step
from lightning_ddpm.utils.torch_internals import multiply_all


class StepMean:
    """Weighs the batches of an optimizer step by their numbers of images, over accumulated batches and ranks.

    Lightning divides the loss of each batch, a mean over its images, by ``accumulate_grad_batches``, and averages over
    ranks. At the end of an epoch a step may have fewer batches, the last of them short, and ranks may differ: then this
    is no mean over images. Where the number of the step's images is known, the loss of each batch is multiplied by the
    factor that makes it one. Where it is not, as for data other than an ImageDataModule, a batch counts n / reference
    times, n images, and before the step the sum is divided by the images of all batches and ranks. With full batches
    all factors are exactly 1. Call :meth:`add` in ``training_step``, and the others in the hooks of their names.

    Args:
        counts_all: whether every image counts; otherwise no rank knows the others' numbers in advance.
    """

    def __init__(self, counts_all: bool = True) -> None:
        self.counts_all = counts_all
        self._counts: list[int | Tensor] = []
        self._loss: Tensor | None = None
        self._total: int | None = None

    def add(self, batch: StepBatch, images: int | Tensor, loss: Tensor) -> None:
        """Add a batch to the current step, or start the next one.

        Args:
            batch: the batch.
            images: number of its images that count.
            loss: () their mean loss.
        """
        self._total = batch.total if self.counts_all else None
        if batch.is_first or not self._counts:
            self._counts, self._loss = [images], loss.detach()
            return
        assert self._loss is not None
        self._counts.append(images)
        so_far = sum(self._counts)
        share = images / (so_far + (so_far == 0))  # 0 / 1 where no image counts
        self._loss = self._loss + (loss.detach() - self._loss) * share

    def backward(self, module: LightningModule, loss: Tensor) -> Tensor:
        """Return the loss of the batch with its weight."""
        batches = module.trainer.accumulate_grad_batches * module.trainer.world_size
        if batches == 1:
            return loss
        images = self._counts[-1]
        factor = images / _get_reference(module) if self._total is None else images * batches / self._total
        return loss * factor if isinstance(factor, Tensor) or factor != 1 else loss

    def on_before_optimizer_step(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Divide the gradients by the number of images, where it was not known; every rank must call."""
        counts, self._counts = self._counts, []
        trainer = module.trainer
        batches = trainer.accumulate_grad_batches * trainer.world_size
        if self._total is not None or batches == 1:
            return
        images: int | Tensor = sum(counts)
        if trainer.world_size > 1:
            mine = torch.as_tensor(images, dtype=torch.float32, device=module.device)
            images = trainer.strategy.reduce(mine, reduce_op="sum")
        factor = batches * _get_reference(module) / (images + (images == 0))  # 0 / 1 where no image counts
        if isinstance(factor, Tensor) or factor != 1:
            multiply_all(collect_gradients(optimizer), factor)

    def log(self, module: LightningModule) -> None:
        """Log ``train/loss`` at the last batch of a step that is logged: the mean over the images of all ranks."""
        if is_logging_step(module.trainer) and not is_accumulating(module.trainer):
            module.log("train/loss", self.average(module)[0])

    def average(self, module: LightningModule, *sums: Tensor) -> tuple[Tensor, ...]:
        """Return the mean loss of the step so far over all ranks, and sums of this rank's values over all of them.

        Every rank must call it, before the optimizer step; with several ranks it exchanges one tensor.
        """
        assert self._loss is not None
        if module.trainer.world_size == 1:
            return self._loss, *sums
        images = torch.as_tensor(sum(self._counts), dtype=self._loss.dtype, device=module.device)
        values = [self._loss * images, images, *sums]
        flat = torch.cat([each.to(self._loss.dtype).flatten() for each in values])
        reduced: Tensor = module.trainer.strategy.reduce(flat, reduce_op="sum")
        split = torch.split(reduced, [each.numel() for each in values])
        loss, counted, *others = (part.reshape(each.shape) for part, each in zip(split, values, strict=True))
        return loss / counted.clamp(min=1), *others


def _get_reference(module: LightningModule) -> int:
    """Return the number of images of a batch with weight 1: the same on all ranks."""
    data = get_image_data(module)
    return data.batch_size if data else 1
