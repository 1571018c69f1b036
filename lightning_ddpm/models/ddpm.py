"""Denoising diffusion as a LightningModule: wires network, schedule, objective and sampler together."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.class_labels import cycle_labels, spread_labels
from lightning_ddpm.data.image_io import to_uint8
from lightning_ddpm.data.sharding import ImageRange
from lightning_ddpm.diffusion import (
    QUARTERS,
    ClassifierFree,
    Denoiser,
    Epsilon,
    Guidance,
    NoiseSchedule,
    Objective,
    Parameterization,
    Sampler,
    Simple,
    TimestepSampler,
    UniformTimesteps,
    sample_stratified,
    sum_by_quarter,
)
from lightning_ddpm.models.optimizer import build_optimizer, collect_gradients
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import ImageNoise, get_run_seed, make_generator, seed_globally


class Network(Protocol):
    """What a network must offer: the shape of its images, and output = network(x_t, t).

    One that has an attribute ``classes``, an int above 0, is called as network(x_t, t, label) as well, with label (b,)
    int64 in 0..classes - 1, or -1 for none, which is what network(x_t, t) means.

    Attributes:
        channels: image channels.
        size: image height and width.
    """

    channels: int
    size: int

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(b, c, h, w) and steps (b,) in 1..T -> (b, c, h, w), or (b, 2c, h, w) with a learned variance."""


class DDPM(LightningModule):
    """Trains a network to denoise (Ho et al. 2020, arXiv:2006.11239, Algorithm 1) and samples with it.

    Args:
        network: predicts the noise, or what ``prediction`` says; see :class:`Network`.
        schedule: how fast the noise comes.
        sampler: how images are drawn, in training's evaluations and from the checkpoint.
        optimizer: parameters -> optimizer (Ho: Adam with learning rate 2e-4).
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step (Ho: linear warm-up over 5,000 steps).
        prediction: what the network's output means; ``null`` for the noise, as Ho.
        objective: what training minimises; ``null`` for L_simple, as Ho.
        times: how t is drawn in training; ``null`` for uniformly, as Ho.
        label_dropout: how often the network, where it has classes, is not told an image's in training, so that it can
            be guided without a classifier (Ho & Salimans 2022, arXiv:2207.12598).
        class_names: what the network's labels mean; on the command line ``null``: as the data has.
    """

    class_counts: Tensor

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        sampler: Sampler,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=2e-4, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=0.0002, total_iters=5000
        ),
        parameterization: Parameterization | None = None,
        objective: Objective | None = None,
        timesteps: TimestepSampler | None = None,
        label_dropout: float = 0.1,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name in ("channels", "size"):
            if not isinstance(getattr(network, name, None), int):
                raise UserError(
                    f"the network must say its images' {name}: give {type(network).__name__} an int .{name}"
                )
        self.network, self.schedule, self.sampler = network, schedule, sampler
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.parameterization, self.objective, self.timesteps = (
            parameterization or Epsilon(),
            objective or Simple(),
            timesteps or UniformTimesteps(),
        )
        self.parameterization.check_schedule(schedule)
        self.sampler.nfe(schedule.T)  # refuses more steps than there are
        self.timesteps.setup(schedule.T)
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout must lie in [0, 1], got {label_dropout}; Ho & Salimans use 0.1")
        self.label_dropout = label_dropout
        classes: int = getattr(network, "classes", 0)
        self.class_names: Sequence[str] = class_names if class_names is not None else [*map(str, range(classes))]
        if len(self.class_names) != classes:
            raise UserError(
                f"class_names names {len(self.class_names)} classes and the network has {classes}; make them agree"
            )
        if classes:  # how many training images each class has, for images to be drawn likewise
            self.register_buffer("class_counts", torch.zeros(classes, dtype=torch.long))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return int(self.network.channels), int(self.network.size), int(self.network.size)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        """Refuse data of another shape before anything is computed."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            return
        data.check_model(self.image_shape, self.class_names if stage != "predict" else ())
        if self.class_names and stage == "fit":
            labels = data.train.labels
            self.class_counts.copy_(torch.bincount(labels[labels >= 0], minlength=len(self.class_names)))

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """The objective of each image, (b,) float32.

        Args:
            x_0: (b, c, h, w) images in [-1, 1].
            t: (b,) steps in 1..T.
            eps: (b, c, h, w) standard normal noise.
            label: (b,) classes, -1 where the network is not told; ignored by one without classes.
        """
        return self.objective.losses(self.denoiser_for(label).without_clipping(), x_0, t, eps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Ho et al. 2020, Algorithm 1; with classes, Ho & Salimans 2022, Algorithm 1."""
        x_0, label = batch
        step = self.trainer.fit_loop.total_batch_idx
        randomness = make_generator(x_0.device, "train", get_run_seed(), self.global_rank, index=step)
        t, weights = self.timesteps.sample(len(x_0), randomness)
        eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=randomness)
        if self.class_names:
            label = self._drop_labels(label, step)
        with seed_globally(x_0.device, "dropout", get_run_seed(), self.global_rank, index=step):
            losses = self.loss(x_0, t, eps, label)
        self.timesteps.update(t, losses, self.all_gather)  # type: ignore[arg-type]
        self.last_losses = t, losses.detach()
        loss = (weights * losses).mean()
        # A loss that is not finite has gradients that are not, on every rank: all leave the step out.
        loss = loss * torch.where(loss.isfinite(), 1.0, torch.nan)
        if self._logs_this_step:
            self.log("train/loss", loss)
            sums, counts = sum_by_quarter(losses.detach(), t, self.schedule.T)
            for quarter in counts.nonzero().flatten().tolist():
                self.log(f"train/loss_quarter{quarter + 1}", sums[quarter] / counts[quarter])
        return loss

    @property
    def _logs_this_step(self) -> bool:
        """Whether what this step logs goes to the loggers; what it costs to know is spent on no other."""
        return self.trainer._logger_connector.should_update_logs

    def _drop_labels(self, label: Tensor, step: int) -> Tensor:
        """The labels, some of them replaced by -1."""
        randomness = make_generator(label.device, "label dropout", get_run_seed(), self.global_rank, index=step)
        told = torch.rand(len(label), device=label.device, generator=randomness) >= self.label_dropout
        return torch.where(told, label, -1)

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(2, QUARTERS, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same t and eps for a batch every time, whichever rank has it: two epochs differ by the weights alone."""
        x_0, label = batch
        index = batch_idx * self.trainer.world_size + self.global_rank
        randomness = make_generator(x_0.device, "validate", index=index)
        t = sample_stratified(len(x_0), self.schedule.T, randomness)
        eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=randomness)
        self._sums += torch.stack(sum_by_quarter(self.loss(x_0, t, eps, label), t, self.schedule.T))

    def on_validation_epoch_end(self) -> None:
        self._log_sums("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_sums("test")

    def _log_sums(self, stage: str) -> None:
        """Log the mean loss over all images of all ranks, and by quarter of t."""
        sums, counts = self.trainer.strategy.reduce(self._sums, reduce_op="sum").float()
        self.log(f"{stage}/loss", sums.sum() / counts.sum(), prog_bar=True, rank_zero_only=False, sync_dist=False)
        for quarter in counts.nonzero().flatten().tolist():
            self.log(f"{stage}/loss_quarter{quarter + 1}", sums[quarter] / counts[quarter], sync_dist=False)

    def predict_step(self, batch: ImageRange, batch_idx: int = 0) -> Tensor:
        """Generate a batch of images with the model's own sampler."""
        seed, start, stop = (int(each) for each in batch)
        return self.generate(SampleRequest(n=stop, seed=seed), start, stop)

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        """Return images ``start``..``stop`` of the request, (stop - start, c, h, w) uint8."""
        return to_uint8((request.sampler or self.sampler).sample(*self.prepare_sampling(request, start, stop)))

    def prepare_sampling(self, request: SampleRequest, start: int, stop: int) -> tuple[Denoiser, Tensor, ImageNoise]:
        """Return what a sampler generates images ``start``..``stop`` from: the denoiser, x_T and the noise."""
        noise = ImageNoise(request.seed, start, stop)
        x_T = noise(torch.empty(stop - start, *self.image_shape, device=self.device))
        label = self.choose_labels(request, start, stop)
        if label is None and request.guidance is None:
            return self.denoiser, x_T, noise
        if label is None:
            label = torch.full((stop - start,), -1)
        return (request.guidance or ClassifierFree())(self.denoiser, label.to(self.device)), x_T, noise

    def choose_labels(self, request: SampleRequest, start: int, stop: int) -> Tensor | None:
        """Return the classes of images ``start``..``stop``, (stop - start,) int64 on the CPU; ``None`` without classes."""
        names = self.list_class_names(request.guidance)
        if not names:
            return None
        if request.labels is None and self.class_names:
            return spread_labels(self.class_counts, request.seed, start, stop)
        return cycle_labels(request.labels or range(len(names)), start, stop)

    def list_class_names(self, guidance: Guidance | None) -> Sequence[str]:
        """Return the classes that can be requested: the model's, or those that the guidance knows; empty for none."""
        return self.class_names or (guidance.class_names if guidance else ())

    @property
    def denoiser(self) -> Denoiser:
        """The network, as samplers want it, told no class."""
        return Denoiser(self.network, self.schedule, parameterization=self.parameterization)

    def denoiser_for(self, label: Tensor | None) -> Denoiser:
        """The network, told the classes (b,), if it has any."""
        return self.denoiser if label is None or not self.class_names else self.denoiser.conditioned_on(label)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer asks, and log the gradient's norm before it."""
        if self._logs_this_step:
            self.log("train/gradient_norm", nn.utils.get_total_norm(collect_gradients(optimizer)))
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
