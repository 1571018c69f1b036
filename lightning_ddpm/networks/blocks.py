"""The layers of Ho et al.'s U-Net (2020, arXiv:2006.11239, appendix B; details as in their released code)."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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


def make_group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Build a GroupNorm with Ho et al.'s eps of 1e-6.

    Raises:
        UserError: channels is not a multiple of groups.
    """
    if channels % groups:
        raise UserError(
            f"channels must be a multiple of groups, got {channels} and {groups}; "
            f"try groups={math.gcd(channels, groups)}"
        )
    return GroupNorm(groups, channels, eps=1e-6)


class SinusoidalEmbedding(nn.Module):
    """Features [sin, cos] of the zero-based timestep t - 1; the lowest frequency is exactly 1/10000.

    Args:
        dim: number of features, even.
    """

    frequency: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise UserError(f"the timestep embedding needs an even width of at least 4, got {dim}")
        exponent = torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - 1)
        self.register_buffer("frequency", torch.exp(-math.log(10000) * exponent).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Map timesteps (b,) in 1..T to (b, dim)."""
        angle = rearrange(t - 1, "b -> b 1").float() * self.frequency.float()
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class LabelEmbedding(nn.Module):
    """A vector for each class and, as the last, one for no class.

    So every image has a vector, and every training step computes a gradient for this layer, whatever the labels.

    Args:
        classes: number of classes.
        dim: length of the vectors.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:
        """Map labels (b,) int64, -1 for no class, to (b, dim)."""
        none = self.vectors.num_embeddings - 1
        return self.vectors(torch.where(label < 0, none, label))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """norm, SiLU, conv; add the embedding; norm, SiLU, dropout, conv; add the input.

    (b, inputs, h, w) -> (b, outputs, h, w).
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = make_group_norm(inputs, groups)
        self.conv1 = make_conv(inputs, outputs)
        self.step = make_linear(embedding, outputs)
        self.norm2 = make_group_norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = make_conv(outputs, outputs, scale=1e-10)
        self.skip = make_conv(inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + rearrange(self.step(functional.silu(embedding)), "b c -> b c 1 1")
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return self.skip(x) + h  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels, added to the input; keeps the shape (b, channels, h, w)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = make_group_norm(channels, groups)
        self.query, self.key, self.value = (make_linear(channels, channels) for _ in range(3))
        self.out = make_linear(channels, channels, scale=1e-10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        query, key, value = self._project(tokens)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = rearrange(self.out(mixed), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return x + out

    def _project(self, tokens: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values; a CPU keeps the three products, whose gradients other sums would change."""
        layers = self.query, self.key, self.value
        return [each(tokens) for each in layers] if tokens.device.type == "cpu" else apply_together(layers, tokens)


def apply_together(layers: Sequence[nn.Linear], x: Tensor) -> Sequence[Tensor]:
    """Return the outputs of linear layers of one size for one input by a single product, which reads the input once."""
    weight, bias = (torch.cat([getattr(each, name) for each in layers]) for name in ("weight", "bias"))
    return functional.linear(x, weight, bias).chunk(len(layers), dim=-1)


class UNetBlock(nn.Module):
    """A residual block, followed by self-attention if ``attention`` is set.

    With ``recompute`` the block keeps no activations for the backward pass but its input, and computes them again there
    (Chen et al. 2016, arXiv:1604.06174). Gradients are the same.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        groups: int,
        dropout: float,
        attention: bool,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.residual = ResidualBlock(inputs, outputs, embedding, groups, dropout)
        self.attention = AttentionBlock(outputs, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._compute, x, embedding, use_reentrant=False)
        return self._compute(x, embedding)

    def _compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))  # type: ignore[no-any-return]


class AttentionPool(nn.Module):
    """Single-head attention pooling, whose only query is the mean of all pixels.

    (b, channels, size, size) -> (b, outputs). Radford et al. 2021 (arXiv:2103.00020), section 2.4; used as in Dhariwal
    & Nichol 2021 (arXiv:2105.05233).
    """

    def __init__(self, channels: int, size: int, outputs: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(size**2 + 1, channels) / math.sqrt(channels))
        self.query, self.key, self.value = (make_linear(channels, channels) for _ in range(3))
        self.out = make_linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pixels = rearrange(x, "b c h w -> b (h w) c")
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.position
        query = self.query(tokens[:, :1])
        mixed = functional.scaled_dot_product_attention(query, self.key(tokens), self.value(tokens))
        return self.out(mixed[:, 0])  # type: ignore[no-any-return]


class DownsampleConv(nn.Module):
    """Convolution of stride 2 that halves height and width; like TensorFlow's, it pads right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = initialise(nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class UpsampleConv(nn.Module):
    """Nearest-neighbour upsampling that doubles height and width, followed by a convolution.

    Autocast would copy the pixels in float32; they are copied as they are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = make_conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            enlarged = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(enlarged)  # type: ignore[no-any-return]
