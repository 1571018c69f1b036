"""The diffusion transformer (DiT) of Peebles & Xie 2023 (arXiv:2212.09748) for pixels, and Li & He 2025's JiT."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_ddpm.networks.blocks import run_block
from lightning_ddpm.networks.condition_embeddings import LabelEmbedding
from lightning_ddpm.networks.conditions import ConditionEmbedding, Conditions
from lightning_ddpm.networks.layers import IntervalEmbedding, SinusoidalEmbedding
from lightning_ddpm.networks.positions import RotaryPositions, embed_positions
from lightning_ddpm.networks.transformer import LastLayer, SelfAttention, SwiGLU, TransformerBlock, make_perceptron
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, get_sides, shorten_size, write_size

FREQUENCIES = 256
"""Features of the timestep before the layers that embed it."""


class DiT(nn.Module):
    """A transformer over the patches of a noisy image x_t, which predicts eps, x_0 or v, optionally given a condition.

    The timestep and the class scale, shift and gate every block (adaLN-zero). The defaults are DiT-S/2. JiT
    (arXiv:2511.13720) has large patches, ``bottleneck``, ``rms_norm``, ``swiglu``, ``qk_norm``, ``rotary`` and
    ``class_tokens``, and predicts x_0: ``model.parameterization: {class_path: lightning_ddpm.diffusion.X0}``.

    Args:
        channels: image channels. On the command line ``null`` takes the data's.
        size: image height and width, multiples of ``patch``: one number for squares, or ``[height, width]``; ``null``
            likewise.
        patch: height and width of a patch; a network with half the patch has four times the tokens.
        width: of a token (S: 384, B: 768, L: 1024, XL: 1152).
        depth: number of blocks (S and B: 12, L: 24, XL: 28).
        heads: number of attention heads (S: 6, B: 12, L and XL: 16).
        hidden_ratio: width of the feed-forward networks' hidden layer divided by ``width``.
        outputs: output channels divided by image channels; 2 if the network also learns the reverse variance.
        classes: number of classes to condition on, 0 for none. On the command line ``null`` takes the data's.
        bottleneck: width to which each patch is reduced first; 0 for none.
        learned_positions: the positions that are added to patches are learned; else fixed sines and cosines.
        rotary: queries and keys are rotated by their position, too.
        qk_norm: queries and keys have RMSNorm.
        rms_norm: blocks have RMSNorm in place of LayerNorm.
        swiglu: feed-forward networks are gated, with two thirds of the hidden layer, in place of GELU.
        class_tokens: number of tokens of the class that attention sees beside the patches.
        class_tokens_from: block, from 0, before which they are added.
        recompute: blocks compute their activations again in the backward pass in place of keeping them: less memory, a
            third more time, the same gradients.
        conditions: embeddings of what images are conditioned on besides their class.
        intervals: whether the network is given the length of a step, to predict the mean velocity over it: MeanFlow.

    Raises:
        UserError: the combination of arguments cannot be built; the message states the fix.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int | None = None,
        size: ImageSize | None = None,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden_ratio: float = 4.0,
        outputs: int = 1,
        classes: int | None = 0,
        bottleneck: int = 0,
        learned_positions: bool = False,
        rotary: bool = False,
        qk_norm: bool = False,
        rms_norm: bool = False,
        swiglu: bool = False,
        class_tokens: int = 0,
        class_tokens_from: int = 4,
        recompute: bool = False,
        conditions: Sequence[ConditionEmbedding] = (),
        intervals: bool = False,
    ) -> None:
        super().__init__()
        if channels is None or size is None:
            raise UserError(f"DiT needs the images' channels and size, got channels={channels}, size={size}")
        sides = get_sides(size)
        if min(channels, *sides, patch, width, depth, heads, outputs) < 1 or bottleneck < 0:
            raise UserError(
                "channels, size, patch, width, depth, heads and outputs must be at least 1 and bottleneck 0 or more, "
                f"got {channels}, {size}, {patch}, {width}, {depth}, {heads}, {outputs} and {bottleneck}"
            )
        if any(side % patch for side in sides):
            raise UserError(f"size must be a multiple of patch, got {write_size(size)} and {patch}")
        if classes is None or classes < 0:
            raise UserError(f"DiT needs the number of classes, got {classes}; use labelled images, or give classes=0")
        if class_tokens < 0 or (class_tokens and not (classes and 0 <= class_tokens_from < depth)):
            raise UserError(
                f"class_tokens={class_tokens} need classes, and class_tokens_from to be one of the {depth} blocks, got "
                f"classes={classes} and class_tokens_from={class_tokens_from}"
            )
        hidden = int(width * hidden_ratio) * 2 // 3 if swiglu else int(width * hidden_ratio)
        if hidden < 1:
            raise UserError(f"the hidden layer has no width; raise hidden_ratio, got {hidden_ratio}")
        self.channels, self.size, self.classes, self.patch = channels, shorten_size(size), classes, patch
        self.class_tokens, self.class_tokens_from, self.recompute = class_tokens, class_tokens_from, recompute
        rows, columns = self.grid = sides[0] // patch, sides[1] // patch

        time = nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        self.embed = nn.Sequential(SinusoidalEmbedding(FREQUENCIES, cosines_first=True), *time)
        self.conditions = Conditions(conditions, channels, size)
        inputs = channels + self.conditions.channels
        parts = [nn.Conv2d(inputs, bottleneck, patch, stride=patch, bias=False)] if bottleneck else []
        last = nn.Conv2d(bottleneck, width, 1) if bottleneck else nn.Conv2d(inputs, width, patch, stride=patch)
        self.embed_patch = nn.Sequential(*parts, last)
        if learned_positions:
            self.positions = nn.Parameter(0.02 * torch.randn(rows * columns, width))
        else:
            self.register_buffer("positions", embed_positions(rows, columns, width), persistent=False)
        turn = RotaryPositions(rows, columns, width // heads, class_tokens) if rotary else None

        def make_hidden() -> nn.Module:
            return SwiGLU(width, hidden) if swiglu else make_perceptron(width, hidden)

        self.blocks = nn.ModuleList(
            TransformerBlock(width, SelfAttention(width, heads, qk_norm, turn), make_hidden, rms_norm)
            for _ in range(depth)
        )
        self.last = LastLayer(width, patch**2 * outputs * channels, rms_norm)
        if classes:  # initialised last, so that the others start as they do without classes
            self.embed_label = LabelEmbedding(classes, width)
        if class_tokens:
            self.class_positions = nn.Parameter(0.02 * torch.randn(class_tokens, width))
        self.intervals = intervals
        if intervals:
            self.embed_interval = IntervalEmbedding(FREQUENCIES, width, cosines_first=True)
        self._initialise()
        self.conditions.build(width, FREQUENCIES)

    def _initialise(self) -> None:
        """Initialise the embeddings as Peebles & Xie's code does; the blocks are."""
        for module in self.embed:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for module in self.embed_patch:  # as a linear layer of the patch
            assert isinstance(module, nn.Conv2d)
            bound = math.sqrt(6 / (module.weight[0].numel() + module.out_channels))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.classes:
            nn.init.normal_(self.embed_label.vectors.weight, std=0.02)

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
        embedding = self.conditions.embed_time(self.embed, given, t)
        if self.intervals:
            embedding = embedding + self.embed_interval(interval, t)
        if self.classes:
            vector = self.embed_label(given, t)
            embedding = embedding + vector
        embedding = self.conditions.add(embedding, given, t)
        x_t = self.conditions.concatenate(x_t, given)
        tokens = rearrange(self.embed_patch(x_t), "b c h w -> b (h w) c") + self.positions
        for index, block in enumerate(self.blocks):
            if self.class_tokens and index == self.class_tokens_from:
                tokens = torch.cat([rearrange(vector, "b c -> b 1 c") + self.class_positions, tokens], dim=1)
            tokens = run_block(block, self.recompute, tokens, embedding)
        pixels, (p, (h, w)) = self.last(tokens[:, self.class_tokens :], embedding), (self.patch, self.grid)
        image: Tensor = rearrange(pixels, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
        return image
