"""A generative adversarial network: the non-saturating loss with the R1 penalty.

Goodfellow et al. 2014 (arXiv:1406.2661); Mescheder et al. 2018 (arXiv:1801.04406).
"""

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.optim.lr_scheduler import LinearLR

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.models.optimizer import build_optimizer, clip_gradients
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.models.steps import StepBatch, generate_validation
from lightning_ddpm.utils.random import ImageNoise


class GAN(LightningModule):
    """Trains a generator G(z), z ~ N(0, I), against a discriminator D(x), the logit that x is real.

    Both take a step at once, as in Mescheder et al.'s analysis: one backward pass of the sum of two losses, in which D
    gets no gradient from the generator's and G none from the discriminator's. One optimizer has the weights of both, so
    that steps, averages, checkpoints and skipped steps are those of any other model.

    Args:
        channels: image channels.
        size: image height and width, a multiple of 4.
        width: channels at full size; twice as many at half, four times as many at a quarter of it.
        latent: number of dimensions of z.
        gamma: weight of the R1 penalty.
        optimizer: parameters -> optimizer; gan.yaml has no momentum, as Mescheder et al.
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 32,
        latent: int = 64,
        gamma: float = 1.0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: LinearLR(optimizer, start_factor=0.01, total_iters=200),
    ) -> None:
        super().__init__()
        self.image_shape, self.values, self.latent, self.gamma = (channels, size, size), UINT8, latent, gamma
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        last, deep = size // 4, 4 * width
        self.generator = nn.Sequential(
            nn.Linear(latent, deep * last**2),
            nn.Unflatten(1, (deep, last, last)),
            nn.GroupNorm(4, deep),
            nn.SiLU(),
            nn.ConvTranspose2d(deep, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, deep, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(deep * last**2, 1),
            nn.Flatten(0),
        )

    def setup(self, stage: str) -> None:
        """Check that the data has the model's image shape."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.check_model(self.image_shape, ())

    def r1(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return D(x) and ||grad_x D(x)||^2 of each image, each (b,); Mescheder et al., eq. 9 without its factor.

        Args:
            x: (b, c, h, w) real images.
        """
        x = x.detach().requires_grad_()
        logit = self.discriminator(x)
        (gradient,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
        return logit, gradient.square().flatten(1).sum(1)

    def losses(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Return the generator's loss, the discriminator's and R1, means over the images, each ().

        -log sigmoid(D(G(z))), Goodfellow et al., section 3; -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))), eq. 1.

        Args:
            x: (b, c, h, w) real images in [-1, 1].
            z: (b, latent) standard normal noise.
        """
        generated = self.generator(z)
        frozen = {name: each.detach() for name, each in self.discriminator.named_parameters()}
        real, penalty = self.r1(x)
        return {
            "generator": softplus(-functional_call(self.discriminator, frozen, generated)).mean(),
            "discriminator": (softplus(-real) + softplus(self.discriminator(generated.detach()))).mean(),
            "r1": penalty.mean(),
        }

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        z = StepBatch(self, len(x), batch_idx).generate("train").randn_like(x.new_empty(len(x), self.latent))
        losses = self.losses(x, z)
        loss = losses["generator"] + losses["discriminator"] + self.gamma / 2 * losses["r1"]
        self.log_dict({"train/loss": loss} | {f"train/{name}": each for name, each in losses.items()})
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the losses on held-out images, which are high for a discriminator that has memorised the others."""
        x, _ = batch
        z = generate_validation(self, len(x), batch_idx).randn_like(x.new_empty(len(x), self.latent))
        real, generated = self.discriminator(x), self.discriminator(self.generator(z))
        found = {"loss": softplus(-real) + softplus(generated), "generator": softplus(-generated)}
        stage = "test" if self.trainer.testing else "val"
        named = {f"{stage}/{name}": each.mean() for name, each in found.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(x))

    test_step = validation_step

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        """Return images ``start``..``stop`` of the request, (stop - start, c, h, w) uint8."""
        z = ImageNoise(request.seed, start, stop)(torch.empty(stop - start, self.latent, device=self.device))
        return self.values.to_data(self.generator(z))

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    configure_gradient_clipping = clip_gradients
