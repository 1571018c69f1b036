"""A classifier of noisy images, whose gradient guides a diffusion model; Dhariwal & Nichol 2021 (arXiv:2105.05233)."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.diffusion import QUARTERS, NoiseSchedule, q_sample, sample_stratified, sum_by_quarter
from lightning_ddpm.models.optimizer import build_optimizer
from lightning_ddpm.networks import UNetEncoder
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import get_run_seed, make_generator, seed_globally


class NoisyClassifier(LightningModule):
    """Cross-entropy of p(y | x_t) on x_t ~ q(x_t | x_0), t uniform over 1..T. Images without a label are left out.

    Logs ``val/loss``, ``val/accuracy`` and, by quarter of t, ``val/accuracy_quarter1`` (nearly clean) to ``4``.

    Args:
        network: (x_t, t) -> logits.
        schedule: that of the model to be guided.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step.
        class_names: what the labels mean; on the command line ``null``: as the data has.
    """

    def __init__(
        self,
        network: UNetEncoder,
        schedule: NoiseSchedule,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.class_names = list(class_names if class_names is not None else map(str, range(network.classes)))
        if len(self.class_names) != network.classes:
            raise UserError(
                f"class_names names {len(self.class_names)} classes and the network has {network.classes}; "
                "make them agree"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.network.channels, self.network.size, self.network.size

    def setup(self, stage: str) -> None:
        """Refuse data of another shape, or of other classes, before anything is computed."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.check_model(self.image_shape, self.class_names)

    def log_probability(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """log p(label | x_t), (b,) float32.

        Args:
            x_t: (b, c, h, w) noisy images.
            t: (b,) steps in 1..T.
            label: (b,) classes.
        """
        return -functional.cross_entropy(self.network(x_t, t).float(), label, reduction="none")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x_0, label = batch
        step = self.trainer.fit_loop.total_batch_idx
        randomness = make_generator(x_0.device, "classify noisy", get_run_seed(), self.global_rank, index=step)
        t = torch.randint(1, self.schedule.T + 1, (len(x_0),), device=x_0.device, generator=randomness)
        x_t = self._add_noise(x_0, t, randomness)
        with seed_globally(x_0.device, "dropout", get_run_seed(), self.global_rank, index=step):
            logits = self.network(x_t, t).float()
        told = label >= 0
        losses = functional.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
        loss: Tensor = losses / told.sum().clamp(min=1)
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(3, QUARTERS, dtype=torch.float64, device=self.device)  # losses, right ones, images

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same t and eps for a batch every time, whichever rank has it."""
        x_0, label = (each[batch[1] >= 0] for each in batch)
        if not len(x_0):
            return
        index = batch_idx * self.trainer.world_size + self.global_rank
        randomness = make_generator(x_0.device, "validate", index=index)
        t = sample_stratified(len(x_0), self.schedule.T, randomness)
        logits = self.network(self._add_noise(x_0, t, randomness), t).float()
        losses, counts = sum_by_quarter(functional.cross_entropy(logits, label, reduction="none"), t, self.schedule.T)
        right, _ = sum_by_quarter((logits.argmax(1) == label).float(), t, self.schedule.T)
        self._sums += torch.stack([losses, right, counts])

    def on_validation_epoch_end(self) -> None:
        self._log_sums("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_sums("test")

    def _log_sums(self, stage: str) -> None:
        """Log loss and accuracy over all images of all ranks, and accuracy by quarter of t."""
        losses, right, counts = self.trainer.strategy.reduce(self._sums, reduce_op="sum").float()
        self.log(f"{stage}/loss", losses.sum() / counts.sum(), rank_zero_only=False, sync_dist=False)
        self.log(f"{stage}/accuracy", right.sum() / counts.sum(), prog_bar=True, sync_dist=False)
        for quarter in counts.nonzero().flatten().tolist():
            self.log(f"{stage}/accuracy_quarter{quarter + 1}", right[quarter] / counts[quarter], sync_dist=False)

    def _add_noise(self, x_0: Tensor, t: Tensor, randomness: torch.Generator) -> Tensor:
        eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=randomness)
        return q_sample(self.schedule, x_0, t, eps)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)
