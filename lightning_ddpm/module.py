"""Denoising diffusion as a LightningModule: wires network, schedule, objective and sampler together."""

from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_ddpm.data.sampler import ImageRange
from lightning_ddpm.diffusion import (
    Denoiser,
    Epsilon,
    NoiseSchedule,
    Objective,
    Prediction,
    Sampler,
    Simple,
    TimeSampler,
    Uniform,
)
from lightning_ddpm.errors import UserError
from lightning_ddpm.images import to_uint8
from lightning_ddpm.randomness import ImageNoise, generator, run_seed, seeded

QUARTERS = 4


class Network(Protocol):
    """What a network must offer: the shape of its images, and output = network(x_t, t).

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
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        sampler: Sampler,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=2e-4),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=0.0002, total_iters=5000
        ),
        prediction: Prediction | None = None,
        objective: Objective | None = None,
        times: TimeSampler | None = None,
    ) -> None:
        super().__init__()
        for name in ("channels", "size"):
            if not isinstance(getattr(network, name, None), int):
                raise UserError(
                    f"the network must say its images' {name}: give {type(network).__name__} an int .{name}"
                )
        self.network, self.schedule, self.sampler = network, schedule, sampler
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.prediction, self.objective, self.times = prediction or Epsilon(), objective or Simple(), times or Uniform()
        self.prediction.check(schedule)
        self.sampler.evaluations(schedule.T)  # refuses more steps than there are
        self.times.begin(schedule.T)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return int(self.network.channels), int(self.network.size), int(self.network.size)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        """Refuse data of another shape before anything is computed."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "channels"):
            return
        channels, size, _ = self.image_shape
        if (data.channels, data.size) != (channels, size):
            raise UserError(
                f"the data has images of {data.channels}x{data.size}x{data.size} and the network is made for "
                f"{channels}x{size}x{size} (channels x height x width); make them agree"
            )

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The objective of each image, (b,) float32.

        Args:
            x_0: (b, c, h, w) images in [-1, 1].
            t: (b,) steps in 1..T.
            eps: (b, c, h, w) standard normal noise.
        """
        unclipped = Denoiser(self.network, self.schedule, clip=None, prediction=self.prediction)
        return self.objective.losses(unclipped, x_0, t, eps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Ho et al. 2020, Algorithm 1."""
        x_0, _ = batch
        step = self.trainer.fit_loop.total_batch_idx
        randomness = generator(x_0.device, "train", run_seed(), self.global_rank, index=step)
        t, weights = self.times.draw(len(x_0), randomness)
        eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=randomness)
        with seeded(x_0.device, "dropout", run_seed(), self.global_rank, index=step):
            losses = self.loss(x_0, t, eps)
        self.times.update(t, losses, self.all_gather)  # type: ignore[arg-type]
        self.seen = t, losses.detach()
        loss = (weights * losses).mean()
        # A loss that is not finite has gradients that are not, on every rank: all leave the step out.
        loss = loss * torch.where(loss.isfinite(), 1.0, torch.nan)
        self.log("train/loss", loss, prog_bar=True)
        sums, counts = self._by_quarter(losses.detach(), t)
        for quarter in counts.nonzero().flatten().tolist():
            self.log(f"train/loss_quarter{quarter + 1}", sums[quarter] / counts[quarter])
        return loss

    def _by_quarter(self, losses: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and counts of the losses with t in each quarter of 1..T, (4,) each."""
        quarter = (t - 1) * QUARTERS // self.schedule.T
        zeros = losses.new_zeros(QUARTERS)
        return zeros.index_add(0, quarter, losses), zeros.index_add(0, quarter, torch.ones_like(losses))

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(2, QUARTERS, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same t and eps for a batch every time, whichever rank has it: two epochs differ by the weights alone."""
        x_0, _ = batch
        index = batch_idx * self.trainer.world_size + self.global_rank
        randomness = generator(x_0.device, "validate", index=index)
        # One t from each of b equal parts of 1..T: every quarter gets its share whatever the batch.
        ranks = torch.arange(len(x_0), device=x_0.device) + torch.rand(
            len(x_0), device=x_0.device, generator=randomness
        )
        t = 1 + (ranks * self.schedule.T / len(x_0)).long().clamp(max=self.schedule.T - 1)
        eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=randomness)
        self._sums += torch.stack(self._by_quarter(self.loss(x_0, t, eps), t))

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
        """Generate a batch with the model's own sampler; see :meth:`generate`."""
        return self.generate(batch)

    def generate(self, batch: ImageRange, sampler: Sampler | None = None) -> Tensor:
        """Draw images ``start``..``stop`` of the set ``seed``: functions of weights, sampler, seed and index alone.

        Args:
            batch: (seed, start, stop).
            sampler: how; ``None`` for the model's own.

        Returns:
            (stop - start, c, h, w) uint8.
        """
        seed, start, stop = (int(each) for each in batch)
        noise = ImageNoise(seed, start, stop)
        x_T = noise(torch.empty(stop - start, *self.image_shape, device=self.device))
        return to_uint8((sampler or self.sampler).sample(self.denoiser, x_T, noise))

    @property
    def denoiser(self) -> Denoiser:
        """The network, as samplers want it."""
        return Denoiser(self.network, self.schedule, prediction=self.prediction)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer asks, and log the gradient's norm before it."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.log("train/gradient_norm", nn.utils.get_total_norm(gradients))
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
