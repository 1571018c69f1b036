"""A normalizing flow: affine couplings (RealNVP) between invertible 1x1 convolutions (Glow).

Dinh et al. 2017 (arXiv:1605.08803); Kingma & Dhariwal 2018 (arXiv:1807.03039).
"""

import math
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import logsigmoid
from torch.optim.lr_scheduler import LinearLR

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.models.optimizer import build_optimizer, clip_gradients
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.models.steps import StepBatch, generate_validation
from lightning_ddpm.utils.random import ImageNoise, PositionRandom

LEVELS = 256
MARGIN = 0.05
"""Dinh et al.'s alpha, section 4.1: values u in [0, 1] become the logit of MARGIN/2 + (1 - MARGIN) u."""


class FlowStep(nn.Module):
    """An invertible 1x1 convolution, then an affine coupling: half of the channels scale and shift the other half.

    Args:
        channels: number of channels, even.
        width: channels inside the coupling's network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        nn.init.zeros_(self.network[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.network[-1].bias)  # type: ignore[arg-type]

    def _couple(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.network(kept).chunk(2, dim=1)
        return 2 * torch.tanh(log_scale / 2), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (b, c, h, w) to y, and return y and log|det dy/dx|, (b,)."""
        kept, changed = (functional.conv2d(x, self.weight[..., None, None]) + self.bias).chunk(2, dim=1)
        log_scale, shift = self._couple(kept)
        volume = torch.linalg.slogdet(self.weight).logabsdet * x[0, 0].numel()
        return torch.cat([kept, changed * log_scale.exp() + shift], dim=1), volume + log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y back to x."""
        kept, changed = y.chunk(2, dim=1)
        log_scale, shift = self._couple(kept)
        x = torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=1) - self.bias
        return functional.conv2d(x, torch.linalg.inv(self.weight)[..., None, None])


class Flow(LightningModule):
    """Maximises the exact likelihood of dequantised images under an invertible map to N(0, I).

    Uniform noise within the bin of each level makes the 256 levels a density on [0, 1], whose expected log-likelihood
    is a lower bound on that of the levels (Theis et al. 2016, arXiv:1511.01844): bits/dim is an upper bound, as
    DDPM's and the VAE's are, and for the dequantised images exact.

    Args:
        channels: image channels.
        size: image height and width, a multiple of 4.
        width: channels inside the couplings' networks.
        steps: number of steps at half the size, and of those at a quarter of it.
        optimizer: parameters -> optimizer.
        lr_scheduler: optimizer -> scheduler, stepped after every optimizer step.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 64,
        steps: int = 4,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: LinearLR(optimizer, start_factor=0.01, total_iters=200),
    ) -> None:
        super().__init__()
        self.image_shape, self.values = (channels, size, size), UINT8
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.steps = nn.ModuleList(FlowStep(each * channels, width) for each in (4, 16) for _ in range(steps))
        self._halvings = 0, steps  # before these steps, pixels become channels

    def setup(self, stage: str) -> None:
        """Check that the data has the model's image shape."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            data.check_model(self.image_shape, ())

    def encode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (b, c, h, w) with values in (0, 1) to z (b, 16 c, h/4, w/4); return z and log|det dz/du|, (b,)."""
        p = MARGIN / 2 + (1 - MARGIN) * u
        x = p.log() - (1 - p).log()
        log_det = (math.log(1 - MARGIN) - logsigmoid(x) - logsigmoid(-x)).flatten(1).sum(1)
        for number, step in enumerate(self.steps):
            x, volume = step(functional.pixel_unshuffle(x, 2) if number in self._halvings else x)
            log_det = log_det + volume
        return x, log_det

    def decode(self, z: Tensor) -> Tensor:
        """Map z back to images with values in (-0.03, 1.03), those of real images in (0, 1)."""
        for number, step in reversed([*enumerate(self.steps)]):
            z = cast(FlowStep, step).inverse(z)
            z = functional.pixel_shuffle(z, 2) if number in self._halvings else z
        return (torch.sigmoid(z) - MARGIN / 2) / (1 - MARGIN)

    def bits_per_dim(self, x: Tensor, noise: Tensor) -> Tensor:
        """Compute -log2 p of dequantised images, (b,) bits/dim.

        Args:
            x: (b, c, h, w) images in [-1, 1].
            noise: (b, c, h, w) uniform in [0, 1).
        """
        z, log_det = self.encode(((x + 1) / 2 * (LEVELS - 1) + noise) / LEVELS)
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return math.log2(LEVELS) - (log_prior + log_det) / (math.log(2) * x[0].numel())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        loss = self.bits_per_dim(x, rand_like(x, StepBatch(self, len(x), batch_idx).generate("train"))).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, _ = batch
        bits = self.bits_per_dim(x, rand_like(x, generate_validation(self, len(x), batch_idx))).mean()
        stage = "test" if self.trainer.testing else "val"
        self.log_dict({f"{stage}/loss": bits, f"{stage}/bits_per_dim": bits}, sync_dist=True, batch_size=len(x))

    test_step = validation_step

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        """Return images ``start``..``stop`` of the request, (stop - start, c, h, w) uint8."""
        c, h, w = self.image_shape
        z = torch.empty(stop - start, 16 * c, h // 4, w // 4, device=self.device)
        u = self.decode(ImageNoise(request.seed, start, stop)(z))
        return (u * LEVELS).floor().clamp(0, LEVELS - 1).to(torch.uint8)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    configure_gradient_clipping = clip_gradients


def rand_like(x: Tensor, random: PositionRandom) -> Tensor:
    """Return uniform numbers in [0, 1) with the shape of x (b, ...), a function of the positions in the step."""
    return random(lambda n, generator: torch.rand((n, *x.shape[1:]), device=x.device, generator=generator))
