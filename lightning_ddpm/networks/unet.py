"""Ho et al.'s U-Net (arXiv:2006.11239, appendix B): 35,746,307 parameters for CIFAR-10, 113,673,219 at 256x256."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.errors import UserError
from lightning_ddpm.networks.blocks import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    SinusoidalEmbedding,
    Upsample,
    conv,
    group_norm,
    linear,
)


class Stage(nn.Module):
    """A residual block, and attention after it where the resolution asks for it."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, embedding, groups, dropout)
        self.attention = AttentionBlock(outputs, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Maps (x_t, t) to an image of the same shape: the noise in x_t, or what else it is trained to say.

    Levels halve the size from one to the next; each has ``blocks`` residual blocks on the way down and one more on the
    way up, and every output on the way down meets its counterpart on the way up.

    Args:
        channels: image channels. On the command line ``null`` means: as the data has.
        size: image height and width; ``null`` likewise. A multiple of 2^(levels - 1).
        width: channels at the first level (Ho: 128).
        multipliers: channels of each level as multiples of ``width`` (Ho: 1, 2, 2, 2 at 32x32).
        attention: the resolutions that have self-attention (Ho: 16); the middle always has.
        blocks: residual blocks a level (Ho: 2).
        dropout: before the second convolution of each block (Ho: 0.1 for CIFAR-10, else 0).
        groups: of GroupNorm; every level's channels are a multiple of it.
        outputs: images' worth of channels to answer with: 2 where the network learns the reverse variance as well
            (Nichol & Dhariwal 2021, arXiv:2102.09672).

    Raises:
        UserError: a combination that cannot be built; the message names the fix.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: int | None = None,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention: Sequence[int] = (16,),
        blocks: int = 2,
        dropout: float = 0.1,
        groups: int = 32,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if channels is None or size is None:
            raise UserError(f"UNet needs the images' channels and size, got channels={channels}, size={size}")
        if min(channels, size, blocks, *multipliers) < 1 or not 0 <= dropout <= 1:
            raise UserError(
                "channels, size, blocks and multipliers must be at least 1 and dropout lie in [0, 1], "
                f"got {channels}, {size}, {blocks}, {list(multipliers)} and {dropout}"
            )
        halvings = len(multipliers) - 1
        if size % 2**halvings:
            raise UserError(
                f"size must be a multiple of {2**halvings}, to be halved {halvings} times; "
                f"got {size}; try size={-(-size // 2**halvings) * 2**halvings} or fewer multipliers"
            )
        sizes = [size // 2**level for level in range(len(multipliers))]
        if missing := set(attention) - set(sizes):
            raise UserError(f"attention is asked for at {sorted(missing)}, but the levels have the sizes {sizes}")
        self.channels, self.size = channels, size

        embedding = 4 * width
        self.embed = nn.Sequential(
            SinusoidalEmbedding(width), linear(width, embedding), nn.SiLU(), linear(embedding, embedding)
        )
        self.first = conv(channels, width)

        def stage(inputs: int, outputs: int, level: int) -> Stage:
            return Stage(inputs, outputs, embedding, groups, dropout, sizes[level] in attention)

        skips, current = [width], width
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(current, width * multiplier, level))
                current = width * multiplier
                skips.append(current)
            if level < halvings:
                self.down.append(Downsample(current))
                skips.append(current)

        self.middle1 = Stage(current, current, embedding, groups, dropout, attention=True)
        self.middle2 = Stage(current, current, embedding, groups, dropout, attention=False)

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(stage(current + skips.pop(), width * multiplier, level))
                current = width * multiplier
            if level > 0:
                self.up.append(Upsample(current))

        self.norm = group_norm(current, groups)
        self.last = conv(current, outputs * channels, scale=1e-10)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the noise, or whatever the network is trained to.

        Args:
            x_t: (b, channels, size, size) noisy images.
            t: (b,) steps, 1..T.

        Returns:
            (b, outputs * channels, size, size).
        """
        embedding = self.embed(t)
        h = self.first(x_t)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        h = self.middle2(self.middle1(h, embedding), embedding)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, Stage) else layer(h)
        return self.last(functional.silu(self.norm(h)))  # type: ignore[no-any-return]
