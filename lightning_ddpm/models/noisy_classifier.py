"""A classifier of noisy images, whose gradient guides a diffusion model; Dhariwal & Nichol 2021 (arXiv:2105.05233)."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.diffusion import GaussianPath, q_sample, sample_stratified
from lightning_ddpm.models import steps
from lightning_ddpm.models.network import get_image_shape, name_classes
from lightning_ddpm.models.optimizer import build_optimizer, clip_gradients
from lightning_ddpm.models.step_mean import StepMean
from lightning_ddpm.networks import UNetEncoder


class NoisyClassifier(LightningModule):
    """Trains a network to predict the class of x_t ~ q(x_t | x_0) by cross-entropy, with t uniform over 1..T.

    Images without a label are skipped. Logs ``val/loss``, ``val/accuracy`` and the accuracy in each quarter of t, for
    T = 1000 from ``val/accuracy_t_000-250``, nearly clean images, to ``val/accuracy_t_750-1000``.

    Args:
        network: (x_t, t) -> logits.
        schedule: the schedule of the model to be guided.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step.
        class_names: the name of each label; ``null`` on the command line for the names in the data.

    Raises:
        UserError: the network has another number of classes than there are names.
    """

    def __init__(
        self,
        network: UNetEncoder,
        schedule: GaussianPath,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.class_names = name_classes(class_names, network)
        self._step_mean = StepMean(counts_all=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return get_image_shape(self.network)

    def setup(self, stage: str) -> None:
        """Check that the data has the network's image shape and classes."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.check_model(self.image_shape, self.class_names)

    def log_probability(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Compute log p(label | x_t), (b,) float32.

        Args:
            x_t: (b, c, h, w) noisy images.
            t: (b,) timesteps in 1..T.
            label: (b,) classes.
        """
        return -functional.cross_entropy(self.network(x_t, t).float(), label, reduction="none")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x_0, label = batch
        this = steps.StepBatch(self, len(x_0), batch_idx)
        random = this.generate("classify noisy")
        t = random(self.schedule.sample_times)
        x_t = q_sample(self.schedule, x_0, t, random.randn_like(x_0))
        with this.seed_globally():
            logits = self.network(x_t, t).float()
        losses = functional.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
        labelled = (label >= 0).sum()
        loss: Tensor = losses / labelled.clamp(min=1)
        self._step_mean.add(this, labelled, loss)
        self._step_mean.log(self)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(self._step_mean.backward(self, loss), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient the mean over the step's images."""
        self._step_mean.on_before_optimizer_step(self, optimizer)

    def on_validation_epoch_start(self) -> None:
        self._sums = steps.TimestepSums(self.schedule.T, ("accuracy", "loss"), self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        labelled = batch[1] >= 0
        if not labelled.any():
            return
        random = steps.generate_validation(self, len(labelled), batch_idx)
        t = random(lambda n, generator: sample_stratified(n, self.schedule.T, generator))
        eps = random.randn_like(batch[0])
        x_0, label, t, eps = (each[labelled] for each in (*batch, t, eps))
        logits = self.network(q_sample(self.schedule, x_0, t, eps), t).float()
        losses = functional.cross_entropy(logits, label, reduction="none")
        self._sums.add(t, (logits.argmax(1) == label).float(), losses)

    def on_validation_epoch_end(self) -> None:
        self._sums.log_means(self)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    configure_gradient_clipping = clip_gradients
