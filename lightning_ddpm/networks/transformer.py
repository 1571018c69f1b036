"""The blocks of a diffusion transformer: Peebles & Xie 2023 (arXiv:2212.09748), Li & He 2025 (arXiv:2511.13720)."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.networks.layers import RMSNorm, make_linear
from lightning_ddpm.networks.positions import RotaryPositions
from lightning_ddpm.utils.errors import UserError

EPS = 1e-6


def make_norm(width: int, rms: bool) -> nn.Module:
    """Build RMSNorm with a weight, or LayerNorm without: what follows it scales and shifts by the condition."""
    return RMSNorm(width, eps=EPS) if rms else nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


def make_zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Build a linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift normalised tokens (b, n, width) by the condition's (b, 1, width) each."""
    return x * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Self-attention over tokens (b, n, width).

    Args:
        width: of a token.
        heads: number of heads.
        normalise: apply RMSNorm to the queries and keys of each head (Henry et al. 2020, arXiv:2010.04245).
        rotary: rotates them by their positions; ``None`` for none.

    Raises:
        UserError: heads does not divide width.
    """

    def __init__(self, width: int, heads: int, normalise: bool, rotary: RotaryPositions | None) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width must be a multiple of heads, got {width} and {heads}")
        self.heads, self.rotary = heads, rotary
        self.qkv, self.out = make_linear(width, 3 * width), make_linear(width, width)
        self.query_norm, self.key_norm = (
            RMSNorm(width // heads, eps=EPS) if normalise else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(
            self.qkv(x), "b n (three heads c) -> three b heads n c", three=3, heads=self.heads
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(mixed, "b heads n c -> b n (heads c)"))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """Gated linear units, SiLU(a) b, in place of a hidden layer; Shazeer 2020 (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value, self.out = make_linear(width, 2 * hidden), make_linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(functional.silu(gate) * value)  # type: ignore[no-any-return]


def make_perceptron(width: int, hidden: int) -> nn.Sequential:
    """Build one hidden layer with GELU."""
    return nn.Sequential(make_linear(width, hidden), nn.GELU(approximate="tanh"), make_linear(hidden, width))


class TransformerBlock(nn.Module):
    """adaLN-zero: attention and a feed-forward network, each scaled, shifted and gated by the condition.

    Gates start at zero, so that the block starts as the identity. (b, n, width), (b, width) -> (b, n, width).
    """

    def __init__(
        self, width: int, attention: SelfAttention, make_hidden: Callable[[], nn.Module], rms_norm: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attention = make_norm(width, rms_norm), attention
        self.norm2, self.hidden = make_norm(width, rms_norm), make_hidden()
        self.modulation = make_zero_linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        six = rearrange(self.modulation(functional.silu(condition)), "b (six c) -> six b 1 c", six=6)
        shift1, scale1, gate1, shift2, scale2, gate2 = six
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.hidden(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class LastLayer(nn.Module):
    """adaLN and a linear layer that starts at zero: (b, n, width), (b, width) -> (b, n, outputs)."""

    def __init__(self, width: int, outputs: int, rms_norm: bool) -> None:
        super().__init__()
        self.norm, self.modulation = make_norm(width, rms_norm), make_zero_linear(width, 2 * width)
        self.linear = make_zero_linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = rearrange(self.modulation(functional.silu(condition)), "b (two c) -> two b 1 c", two=2)
        return self.linear(modulate(self.norm(x), shift, scale))  # type: ignore[no-any-return]
