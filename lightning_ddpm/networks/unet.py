"""Ho et al.'s U-Net (arXiv:2006.11239, appendix B): 35,746,307 parameters for CIFAR-10, 113,673,219 at 256x256.

With :class:`UNetLayers` it is also ADM (Dhariwal & Nichol 2021, arXiv:2105.05233) and DDPM++ (Song et al. 2021,
arXiv:2011.13456): configs/adm_64.yaml and docs/how-to/networks.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.networks.blocks import DownsampleConv, ResampleBlock, UNetBlock, UpsampleConv
from lightning_ddpm.networks.condition_embeddings import LabelEmbedding
from lightning_ddpm.networks.conditions import ConditionEmbedding, Conditions
from lightning_ddpm.networks.layers import IntervalEmbedding, SinusoidalEmbedding
from lightning_ddpm.networks.padding import crop, get_padding, pad
from lightning_ddpm.networks.unet_layers import UNetLayers
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, get_sides, pad_size, shorten_size, write_size


class EncoderParts(NamedTuple):
    """The encoder of a U-Net and its middle.

    Attributes:
        embed: maps timesteps (b,) to (b, embedding).
        first, down, middle1, middle2: the layers, in order.
        skips: channels of every output of the encoder; the last is also that of the middle.
        make_block: builds a block with the same settings: (inputs, outputs, level, may attend) -> block.
        make_upsampling: builds what doubles height and width: (channels, level before) -> layer.
        shape: channels and size of the images, the size in its short form.
        sides: height and width inside the network at the last level.
    """

    embed: nn.Sequential
    first: nn.Conv2d
    down: nn.ModuleList
    middle1: UNetBlock
    middle2: UNetBlock
    skips: list[int]
    make_block: Callable[[int, int, int, bool], UNetBlock]
    make_upsampling: Callable[[int, int], nn.Module]
    shape: tuple[int, ImageSize]
    sides: tuple[int, int]


def _halve(size: ImageSize, halvings: int, pad_to_multiple: int) -> tuple[int, int]:
    """Return height and width at the last level; UserError if they cannot be halved so often."""
    if pad_to_multiple < 1:
        raise UserError(f"pad_to_multiple must be at least 1, which pads nothing, got {pad_to_multiple}")
    height, width = pad_size(size, pad_to_multiple)
    if halvings > min(height, width).bit_length():
        raise UserError(f"images of size {write_size(size)} cannot be halved {halvings} times; give fewer multipliers")
    multiple = 2**halvings
    if height % multiple or width % multiple:
        times = "once" if halvings == 1 else f"{halvings} times"
        raise UserError(
            f"size must be a multiple of {multiple}, because it is halved {times}; got {write_size(size)}; "
            f"try size={write_size(pad_size(size, multiple))}, pad_to_multiple={multiple} or fewer multipliers"
        )
    return height // multiple, width // multiple


def build_encoder(
    channels: int | None,
    size: ImageSize | None,
    width: int,
    multipliers: Sequence[int],
    attention: Sequence[int],
    blocks: int,
    dropout: float,
    groups: int,
    recompute: Sequence[int] = (),
    layers: UNetLayers | None = None,
    pad_to_multiple: int = 1,
    more_channels: int = 0,
) -> EncoderParts:
    """Build the encoder and the middle; see :class:`UNet` for arguments and errors.

    ``more_channels`` are concatenated to those of the image.
    """
    if channels is None or size is None:
        raise UserError(f"UNet needs the images' channels and size, got channels={channels}, size={size}")
    numbers = (channels, *get_sides(size), width, blocks, groups, *multipliers)
    if not multipliers or min(numbers) < 1 or not 0 <= dropout <= 1:
        raise UserError(
            "channels, size, width, blocks, groups and one or more multipliers must be at least 1 and dropout lie in "
            f"[0, 1], got {channels}, {size}, {width}, {blocks}, {groups}, {list(multipliers)} and {dropout}"
        )
    halvings = len(multipliers) - 1
    sides = _halve(size, halvings, pad_to_multiple)
    sizes = [min(sides) * 2**level for level in reversed(range(len(multipliers)))]
    for name, chosen in (("attention", attention), ("recompute", recompute)):
        if missing := set(chosen) - set(sizes):
            raise UserError(f"{name} is set for the sizes {sorted(missing)}, but the levels have the sizes {sizes}")

    embedding, layers = 4 * width, layers or UNetLayers()
    linear1, linear2 = layers.linear(width, embedding), layers.linear(embedding, embedding)
    time = SinusoidalEmbedding(width, layers.cosines_first, layers.time_offset)
    embed = nn.Sequential(time, linear1, nn.SiLU(), linear2)
    first = layers.conv(channels + more_channels, width)

    def make_block(inputs: int, outputs: int, level: int, may_attend: bool = True) -> UNetBlock:
        attends, at = may_attend and sizes[level] in attention, sizes[level] in recompute
        return UNetBlock(inputs, outputs, embedding, groups, dropout, attends, at, layers)

    def make_resampling(channels: int, enlarge: bool, size: int) -> nn.Module:
        if layers.residual_resampling:
            return ResampleBlock(channels, embedding, groups, dropout, enlarge, size in recompute, layers)
        return UpsampleConv(channels, layers) if enlarge else DownsampleConv(channels, layers)

    skips, current = [width], width
    down = nn.ModuleList()
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            down.append(make_block(current, width * multiplier, level))
            current = width * multiplier
            skips.append(current)
        if level < halvings:
            down.append(make_resampling(current, False, sizes[level]))
            skips.append(current)

    last = sizes[-1] in recompute
    middle1 = UNetBlock(current, current, embedding, groups, dropout, True, last, layers)
    middle2 = UNetBlock(current, current, embedding, groups, dropout, False, last, layers)

    def make_upsampling(channels: int, level: int) -> nn.Module:
        return make_resampling(channels, True, sizes[level - 1])

    shape = channels, shorten_size(size)
    return EncoderParts(embed, first, down, middle1, middle2, skips, make_block, make_upsampling, shape, sides)


def run_encoder(first: nn.Module, down: nn.ModuleList, x_t: Tensor, embedding: Tensor) -> list[Tensor]:
    """Return the output of every layer of the encoder, (b, c, h, w) each."""
    outputs = [first(x_t)]
    for layer in down:
        takes_embedding = isinstance(layer, UNetBlock | ResampleBlock)
        outputs.append(layer(outputs[-1], embedding) if takes_embedding else layer(outputs[-1]))
    return outputs


class UNet(nn.Module):
    """A U-Net, which predicts eps, x_0 or v of a noisy image x_t, optionally given a condition: Ho et al.'s.

    Every level after the first halves height and width. A level has ``blocks`` residual blocks in the encoder and one
    more in the decoder. Each block of the decoder also gets the output of the encoder's corresponding layer.

    Args:
        channels: image channels. On the command line ``null`` takes the data's.
        size: image height and width, multiples of 2^(levels - 1): one number for squares, or ``[height, width]``;
            ``null`` likewise.
        width: channels at the first level (Ho et al.: 128).
        multipliers: channels of each level as multiples of ``width`` (Ho et al.: 1, 2, 2, 2 at 32x32).
        attention: resolutions with self-attention (Ho et al.: 16); the middle always has it. The resolution of a level
            is the shorter of its height and width.
        blocks: residual blocks per level (Ho et al.: 2).
        dropout: dropout probability before the second convolution of each block (Ho et al.: 0.1 for CIFAR-10, else 0).
        groups: number of groups of GroupNorm; it must divide the channels of every level.
        outputs: output channels divided by image channels; 2 if the network also learns the reverse variance (Nichol
            & Dhariwal 2021, arXiv:2102.09672).
        classes: number of classes to condition on, 0 for none. On the command line ``null`` takes the data's.
        recompute: resolutions whose blocks compute their activations again in the backward pass in place of keeping
            them: less memory, a third more time there, the same gradients.
        layers: how blocks, attention and resampling are built; ``null`` for Ho et al.'s.
        pad_to_multiple: images are padded by zeros on all sides inside the network, until height and width are
            multiples of this number, and the prediction is cropped. With 1 nothing is padded.
        conditions: embeddings of what images are conditioned on besides their class.
        intervals: whether the network is given the length of a step, to predict the mean velocity over it: MeanFlow.

    Raises:
        UserError: the combination of arguments cannot be built; the message states the fix.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: ImageSize | None = None,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention: Sequence[int] = (16,),
        blocks: int = 2,
        dropout: float = 0.1,
        groups: int = 32,
        outputs: int = 1,
        classes: int | None = 0,
        recompute: Sequence[int] = (),
        layers: UNetLayers | None = None,
        pad_to_multiple: int = 1,
        conditions: Sequence[ConditionEmbedding] = (),
        intervals: bool = False,
    ) -> None:
        super().__init__()
        if outputs < 1:
            raise UserError(f"outputs must be at least 1, got {outputs}; 2 with a learned variance")
        if classes is None or classes < 0:
            raise UserError(f"UNet needs the number of classes, got {classes}; use labelled images, or give classes=0")
        self.layers = layers = layers or UNetLayers()
        self.conditions = Conditions(conditions, channels, size)
        parts = build_encoder(
            *(channels, size, width, multipliers, attention, blocks, dropout, groups, recompute, layers),
            pad_to_multiple=pad_to_multiple,
            more_channels=self.conditions.channels,
        )
        self.pad_to_multiple = pad_to_multiple
        (self.channels, self.size), self.classes = parts.shape, classes
        self.embed, self.first, self.down, self.middle1, self.middle2 = parts[:5]
        current, skips = parts.skips[-1], list(parts.skips)

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                may_attend = block == blocks or not layers.sparse_attention
                self.up.append(parts.make_block(current + skips.pop(), width * multiplier, level, may_attend))
                current = width * multiplier
            if level > 0:
                self.up.append(parts.make_upsampling(current, level))

        self.norm = layers.norm(current, groups)
        self.last = layers.conv(current, outputs * self.channels, is_last=True)
        if classes:  # initialised last, so that the others start as they do without classes
            self.embed_label = LabelEmbedding(classes, width if layers.early_label else 4 * width)
        self.conditions.build(4 * width, width)
        self.intervals = intervals
        if intervals:
            self.embed_interval = IntervalEmbedding(width, 4 * width, layers.cosines_first)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Condition | Tensor | None = None, interval: Tensor | None = None
    ) -> Tensor:
        """Predict eps, x_0 or v, whichever the network is trained for.

        Args:
            x_t: noisy images (b, channels, height, width).
            t: timesteps (b,) in 1..T.
            condition: of each image, or classes (b,) int64 alone, where -1 is none; ``None`` for an unconditional
                prediction.
            interval: lengths t - s of steps (b,), for a network with ``intervals``; ``None`` for 0 everywhere.

        Returns:
            (b, outputs * channels, height, width).
        """
        given = as_condition(condition)
        label = self.embed_label(given, t) if self.classes else None
        early = label if self.layers.early_label else None
        embedding = self.conditions.embed_time(self.embed, given, t, early)
        if self.intervals:
            embedding = embedding + self.embed_interval(interval, t)
        if label is not None and early is None:
            embedding = embedding + label
        embedding = self.conditions.add(embedding, given, t)
        x_t = self.conditions.concatenate(x_t, given)
        padding = get_padding(x_t, self.pad_to_multiple)
        skips = run_encoder(self.first, self.down, pad(x_t, padding), embedding)
        h = self.middle2(self.middle1(skips[-1], embedding), embedding)
        for layer in self.up:
            if isinstance(layer, UNetBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(h, embedding) if isinstance(layer, ResampleBlock) else layer(h)
        return crop(self.last(functional.silu(self.norm(h))), padding)
