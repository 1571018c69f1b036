"""The gradient of an optimizer step as the mean over its images, whichever batches and ranks have them."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.optimizer import collect_gradients
from lightning_ddpm.utils.torch_internals import multiply_all


class StepMean:
    """Weighs the batches of an optimizer step by their numbers of images, over accumulated batches and ranks.

    Lightning divides the loss of each batch, a mean over its images, by ``accumulate_grad_batches``, and averages over
    ranks. At the end of an epoch a step may have fewer batches, the last of them short, and ranks may differ: then this
    is no mean over images. Here a batch counts n / reference times, n images, and before the step the sum is divided by
    the images of all batches and ranks. With full batches both factors are exactly 1. Without accumulation on one rank,
    nothing is done. Call :meth:`add` in ``training_step``, and the others in the hooks of their names.

    Args:
        counts_all: whether every image counts; otherwise the number may differ on ranks with batches of equal size.
    """

    def __init__(self, counts_all: bool = True) -> None:
        self.counts_all = counts_all
        self._counts: list[int | Tensor] = []
        self._loss: Tensor | None = None

    def add(self, module: LightningModule, batch_idx: int, images: int | Tensor, loss: Tensor) -> Tensor:
        """Add a batch to the current step, or start the next one.

        Args:
            module: the module that is trained.
            batch_idx: index of the batch in its epoch.
            images: number of images of the batch that count.
            loss: () their mean loss.

        Returns:
            The mean loss over the images of the step so far, on this rank, without gradients.
        """
        if batch_idx % module.trainer.accumulate_grad_batches == 0 or not self._counts:
            self._counts, self._loss = [images], loss.detach()
            return self._loss
        assert self._loss is not None
        before = sum(self._counts)
        self._counts.append(images)
        self._loss = self._loss + (loss.detach() - self._loss) * (images / (before + images))
        return self._loss

    def backward(self, module: LightningModule, loss: Tensor) -> Tensor:
        """Return the loss of the batch with its weight."""
        return loss * (self._counts[-1] / self._get_reference(module)) if self._is_needed(module) else loss

    def on_before_optimizer_step(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Divide the gradients by the number of images; every rank must call."""
        counts, self._counts = self._counts, []
        if not self._is_needed(module):
            return
        trainer = module.trainer
        images: int | Tensor = sum(counts)
        if trainer.world_size > 1:
            mine = torch.as_tensor(images, dtype=torch.float32, device=module.device)
            images = trainer.strategy.reduce(mine, reduce_op="sum")
        batches = trainer.accumulate_grad_batches * trainer.world_size
        factor = batches * self._get_reference(module) / (images + (images == 0))  # 0 / 1 where no image counts
        if isinstance(factor, Tensor) or factor != 1:
            multiply_all(collect_gradients(optimizer), factor)

    def _is_needed(self, module: LightningModule) -> bool:
        trainer = module.trainer
        if trainer.accumulate_grad_batches > 1:
            return True
        has_equal_batches = self.counts_all and isinstance(_get_data(module), ImageDataModule)
        return trainer.world_size > 1 and not has_equal_batches

    def _get_reference(self, module: LightningModule) -> int:
        """Return the number of images of a batch with weight 1: the same on all ranks."""
        data = _get_data(module)
        return data.batch_size if isinstance(data, ImageDataModule) else 1


def _get_data(module: LightningModule) -> object:
    return getattr(module.trainer, "datamodule", None)
