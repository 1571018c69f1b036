"""The blocks of a U-Net: Ho et al.'s (2020, arXiv:2006.11239, appendix B), with the options of :class:`UNetLayers`."""

import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_ddpm.networks.layers import initialise, make_linear
from lightning_ddpm.networks.unet_layers import UNetLayers

HO = UNetLayers()


class ResidualBlock(nn.Module):
    """norm, SiLU, conv; add the embedding; norm, SiLU, dropout, conv; add the input.

    (b, inputs, h, w) -> (b, outputs, h, w). With ``layers.scale_shift`` the embedding does not shift what the second
    norm reads but scales and shifts what it returns. ``resample`` changes height and width of the input and, before
    the first convolution, of what is added to it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        groups: int,
        dropout: float,
        layers: UNetLayers = HO,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.resample = layers, resample
        self.norm1 = layers.norm(inputs, groups)
        self.conv1 = layers.conv(inputs, outputs)
        self.step = layers.linear(embedding, 2 * outputs if layers.scale_shift else outputs)
        self.norm2 = layers.norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = layers.conv(outputs, outputs, is_last=True)
        is_projected = inputs != outputs or (resample is not None and layers.projected_resampling)
        self.skip = layers.conv(inputs, outputs, kernel=1) if is_projected else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = functional.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        step = rearrange(self.step(functional.silu(embedding)), "b c -> b c 1 1")
        if self.layers.scale_shift:
            scale, shift = step.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + step)
        return self.layers.add(self.skip(x), self.conv2(self.dropout(functional.silu(h))))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, added to the input; keeps the shape (b, channels, h, w)."""

    def __init__(self, channels: int, groups: int, layers: UNetLayers = HO) -> None:
        super().__init__()
        self.layers, self.heads = layers, layers.count_heads(channels)
        self.norm = layers.norm(channels, groups)
        self.query, self.key, self.value = (layers.linear(channels, channels) for _ in range(3))
        self.out = layers.linear(channels, channels, is_last=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        query, key, value = (
            rearrange(each, "b n (heads c) -> b heads n c", heads=self.heads) for each in self._project(tokens)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(rearrange(mixed, "b heads n c -> b n (heads c)"))
        return self.layers.add(x, rearrange(out, "b (h w) c -> b c h w", h=x.shape[2]))

    def _project(self, tokens: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values; a CPU keeps the three products, whose gradients other sums would change."""
        layers = self.query, self.key, self.value
        return [each(tokens) for each in layers] if tokens.device.type == "cpu" else apply_together(layers, tokens)


def apply_together(layers: Sequence[nn.Linear], x: Tensor) -> Sequence[Tensor]:
    """Return the outputs of linear layers of one size for one input by a single product, which reads the input once."""
    weight, bias = (torch.cat([getattr(each, name) for each in layers]) for name in ("weight", "bias"))
    return functional.linear(x, weight, bias).chunk(len(layers), dim=-1)


def run_block(compute: Callable[..., Tensor], recompute: bool, *inputs: Tensor) -> Tensor:
    """Run a block; with ``recompute`` it keeps no activations for the backward pass but its inputs.

    It computes them again there (Chen et al. 2016, arXiv:1604.06174). Gradients are the same.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(compute, *inputs, use_reentrant=False)
    return compute(*inputs)


class UNetBlock(nn.Module):
    """A residual block, followed by self-attention if ``attention`` is set; see :func:`run_block` for ``recompute``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        groups: int,
        dropout: float,
        attention: bool,
        recompute: bool = False,
        layers: UNetLayers = HO,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.residual = ResidualBlock(inputs, outputs, embedding, groups, dropout, layers)
        self.attention = AttentionBlock(outputs, groups, layers) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return run_block(self._compute, self.recompute, x, embedding)

    def _compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))  # type: ignore[no-any-return]


class ResampleBlock(nn.Module):
    """A residual block that halves height and width, or with ``enlarge`` doubles them."""

    def __init__(
        self,
        channels: int,
        embedding: int,
        groups: int,
        dropout: float,
        enlarge: bool,
        recompute: bool,
        layers: UNetLayers,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        resample = Enlarge() if enlarge else nn.AvgPool2d(2)
        self.residual = ResidualBlock(channels, channels, embedding, groups, dropout, layers, resample)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return run_block(self.residual, self.recompute, x, embedding)


class AttentionPool(nn.Module):
    """Single-head attention pooling, whose only query is the mean of all pixels.

    (b, channels, h, w) -> (b, outputs), where h w = pixels. Radford et al. 2021 (arXiv:2103.00020), section 2.4; used
    as in Dhariwal & Nichol 2021 (arXiv:2105.05233).
    """

    def __init__(self, channels: int, pixels: int, outputs: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(pixels + 1, channels) / math.sqrt(channels))
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

    def __init__(self, channels: int, layers: UNetLayers = HO) -> None:
        super().__init__()
        self.padding = (1, 1, 1, 1) if layers.symmetric_padding else (0, 1, 0, 1)
        conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.conv = conv if layers.zero_outputs else initialise(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, self.padding))  # type: ignore[no-any-return]


class Enlarge(nn.Module):
    """Nearest-neighbour upsampling that doubles height and width.

    Autocast would copy the pixels in float32; they are copied as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class UpsampleConv(nn.Module):
    """Nearest-neighbour upsampling that doubles height and width, followed by a convolution."""

    def __init__(self, channels: int, layers: UNetLayers = HO) -> None:
        super().__init__()
        self.enlarge = Enlarge()
        self.conv = layers.conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.enlarge(x))  # type: ignore[no-any-return]
