"""A variational autoencoder; Kingma & Welling 2014 (arXiv:1312.6114)."""

import math
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.diffusion.elbo import decoder_log_likelihood, gaussian_kl
from lightning_ddpm.models.optimizer import build_optimizer, clip_gradients
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.models.steps import StepBatch, generate_validation
from lightning_ddpm.utils.random import ImageNoise


class VAE(LightningModule):
    """Maximises the evidence lower bound (ELBO) of log p(x), with z ~ N(0, I) and Gaussians as encoder and decoder.

    The decoder's Gaussian has a learned variance for each value, and is discretised to the 256 levels as that of DDPM
    is (Ho et al. 2020, eq. 13): the loss is a bound on bits/dim that compares with DDPM's. Images are the means of
    p(x | z).

    Args:
        channels: image channels.
        size: image height and width, a multiple of 4.
        width: channels at full size; twice as many at half, four times as many at a quarter of it.
        latent: number of dimensions of z.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 32,
        latent: int = 16,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: LinearLR(optimizer, start_factor=0.01, total_iters=200),
    ) -> None:
        super().__init__()
        self.image_shape, self.values, self.latent = (channels, size, size), UINT8, latent
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        last, deep = size // 4, 4 * width
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, deep, 4, stride=2, padding=1),
            nn.GroupNorm(4, deep),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(deep * last**2, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, deep * last**2),
            nn.Unflatten(1, (deep, last, last)),
            nn.SiLU(),
            nn.ConvTranspose2d(deep, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * channels, 3, padding=1),
        )

    def setup(self, stage: str) -> None:
        """Check that the data has the model's image shape."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.check_model(self.image_shape, ())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | x), each (b, latent), of images (b, c, h, w) in [-1, 1]."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of p(x | z), each (b, c, h, w)."""
        mean, log_variance = self.decoder(z).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 2)  # a deviation of 0.3 levels to 1.4 times the whole range

    def negative_elbo(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate KL(q(z | x) || p(z)) - E log p(x | z) of each image, from one z = mean + sigma eps.

        Kingma & Welling, eq. 3 with the reparameterisation of eq. 10.

        Args:
            x: (b, c, h, w) images in [-1, 1].
            eps: (b, latent) standard normal noise.

        Returns:
            The two terms, each (b,) in bits/dim.
        """
        mean, log_variance = self.encode(x)
        zero = torch.zeros_like(mean)
        kl = gaussian_kl(mean, log_variance, zero, zero).sum(1)
        likelihood = decoder_log_likelihood(x, *self.decode(mean + (log_variance / 2).exp() * eps), self.values.levels)
        bits = math.log(2) * x[0].numel()
        return kl / bits, -likelihood.flatten(1).sum(1) / bits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        eps = StepBatch(self, len(x), batch_idx).generate("train").randn_like(x.new_empty(len(x), self.latent))
        kl, reconstruction = (each.mean() for each in self.negative_elbo(x, eps))
        self.log_dict({"train/loss": kl + reconstruction, "train/kl": kl, "train/reconstruction": reconstruction})
        return kl + reconstruction

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, _ = batch
        eps = generate_validation(self, len(x), batch_idx).randn_like(x.new_empty(len(x), self.latent))
        kl, reconstruction = (each.mean() for each in self.negative_elbo(x, eps))
        stage = "test" if self.trainer.testing else "val"
        found = {f"{stage}/loss": kl + reconstruction, f"{stage}/bits_per_dim": kl + reconstruction, f"{stage}/kl": kl}
        self.log_dict(found, sync_dist=True, batch_size=len(x))

    test_step = validation_step

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        """Return images ``start``..``stop`` of the request, (stop - start, c, h, w) uint8: E[x | z], z ~ N(0, I)."""
        z = ImageNoise(request.seed, start, stop)(torch.empty(stop - start, self.latent, device=self.device))
        return self.values.to_data(self.decode(z)[0])

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    configure_gradient_clipping = clip_gradients
