"""The smallest parts of the networks: initialised layers, GroupNorm, and embeddings of timesteps.

Details are those of Ho et al.'s released code (2020, arXiv:2006.11239) unless stated otherwise.
"""

import math
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.utils.errors import UserError

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def initialise(layer: Layer, scale: float = 1.0) -> Layer:
    """Initialise a layer's weights from U(-a, a) of variance ``scale`` / ((fan_in + fan_out) / 2), its biases by 0."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def make_conv(inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0) -> nn.Conv2d:
    """Build a convolution that keeps height and width, initialised as in Ho et al."""
    return initialise(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), scale)


def make_linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """Build a linear layer, initialised as in Ho et al."""
    return initialise(nn.Linear(inputs, outputs), scale)


class GroupNorm(nn.GroupNorm):
    """GroupNorm in the precision of its input; the kernels compute mean and variance in float32 all the same.

    On a GPU, autocast would convert a half-precision input to float32 and every layer behind it back: half of the
    memory traffic of a training step. On the CPU it converts nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" or x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its input, for the reason of :class:`GroupNorm`; kernels add up in float32."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_group_norm(channels: int, groups: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Build a GroupNorm; Ho et al.'s eps is 1e-6.

    Raises:
        UserError: channels is not a multiple of groups.
    """
    if channels % groups:
        raise UserError(
            f"channels must be a multiple of groups, got {channels} and {groups}; "
            f"try groups={math.gcd(channels, groups)}"
        )
    return GroupNorm(groups, channels, eps=eps)


class SinusoidalEmbedding(nn.Module):
    """Features [sin, cos] of the zero-based timestep t - 1; the lowest frequency is exactly 1/10000.

    Args:
        dim: number of features, even.
        cosines_first: [cos, sin], with frequencies 10000^(-k/half) that end one step above 1/10000, as in the code of
            Dhariwal & Nichol 2021 (arXiv:2105.05233) and Peebles & Xie 2023 (arXiv:2212.09748).
        offset: subtracted from t.
    """

    frequency: Tensor

    def __init__(self, dim: int, cosines_first: bool = False, offset: int = 1) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise UserError(f"the timestep embedding needs an even width of at least 4, got {dim}")
        self.cosines_first, self.offset, half = cosines_first, offset, dim // 2
        exponent = torch.arange(half, dtype=torch.float64) / (half if cosines_first else half - 1)
        self.register_buffer("frequency", torch.exp(-math.log(10000) * exponent).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Map timesteps (b,) in 1..T to (b, dim)."""
        angle = rearrange(t - self.offset, "b -> b 1").float() * self.frequency.float()
        return torch.cat([angle.cos(), angle.sin()] if self.cosines_first else [angle.sin(), angle.cos()], dim=1)


class IntervalEmbedding(nn.Module):
    """The embedding of a step's length t - s, which is 0 at first; Geng et al. 2025 (arXiv:2505.13447), section 4.3.

    Args:
        features: number of sinusoidal features.
        dim: number of outputs.
        cosines_first: see :class:`SinusoidalEmbedding`.
    """

    def __init__(self, features: int, dim: int, cosines_first: bool = False) -> None:
        super().__init__()
        last = nn.Linear(dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = make_linear(features, dim)
        self.layers = nn.Sequential(SinusoidalEmbedding(features, cosines_first), first, nn.SiLU(), last)

    def forward(self, interval: Tensor | None, t: Tensor) -> Tensor:
        """Map t - s (b,), or ``None`` for s = t at every t (b,), to (b, dim)."""
        interval = torch.zeros_like(t) if interval is None else interval
        return self.layers(interval + 1)  # type: ignore[no-any-return]  # the embedding counts from 1
