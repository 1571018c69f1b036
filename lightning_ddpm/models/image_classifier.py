"""A classifier of clean images, whose features and predictions evaluate generated images."""

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.data.missing import require_complete
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.models.optimizer import build_optimizer, clip_gradients
from lightning_ddpm.models.step_mean import StepMean
from lightning_ddpm.models.steps import StepBatch
from lightning_ddpm.networks import SmallCNN


class ImageClassifier(LightningModule):
    """Trains a network by cross-entropy on randomly shifted images, so that features do not depend on single pixels.

    Args:
        network: images -> logits, with features.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step.
        values: type and range of the images' values; ``null`` on the command line for those of the data.
    """

    def __init__(
        self,
        network: SmallCNN,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
        values: ValueRange | None = None,
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.lr_scheduler = network, optimizer, lr_scheduler
        self._step_mean, self.values = StepMean(), values or UINT8
        require_complete(self.values, "ImageClassifier")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, label = batch
        this = StepBatch(self, len(label), batch_idx)
        with this.seed_globally("classify"):
            dy, dx = torch.randint(-1, 2, (2,)).tolist()
            shifted = torch.roll(functional.pad(x, (1, 1, 1, 1), value=-1), (dy, dx), (2, 3))[..., 1:-1, 1:-1]
            loss = functional.cross_entropy(self.network(shifted), label)
        self._step_mean.add(this, len(label), loss)
        self._step_mean.log(self)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(self._step_mean.backward(self, loss), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient the mean over the step's images."""
        self._step_mean.on_before_optimizer_step(self, optimizer)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, label = batch
        logits = self.network(x)
        self.log("val/loss", functional.cross_entropy(logits, label), sync_dist=True)
        accuracy = (logits.argmax(1) == label).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    configure_gradient_clipping = clip_gradients
