"""How the layers of a U-Net are built: Ho et al.'s by default, and those of ADM and DDPM++."""

from torch import Tensor, nn

from lightning_ddpm.networks.layers import Layer, make_conv, make_group_norm, make_linear
from lightning_ddpm.utils.errors import UserError


class UNetLayers:
    """Settings of a U-Net's layers; the defaults are Ho et al.'s.

    ADM (Dhariwal & Nichol 2021, arXiv:2105.05233, and their code) has ``scale_shift``, ``head_width`` 64,
    ``residual_resampling``, ``zero_outputs``, ``cosines_first`` and ``eps`` 1e-5. DDPM++ (Song et al. 2021,
    arXiv:2011.13456, as Karras et al. 2022, arXiv:2206.00364, train it) has ``residual_resampling``,
    ``projected_resampling``, ``skip_scale`` 0.70710678 and ``sparse_attention``; in EDM's code ``early_label`` and
    ``time_offset`` 0, too.

    Args:
        scale_shift: the embedding scales and shifts the output of each block's second norm ("adaptive group
            normalisation"); else it is added before this norm.
        heads: number of attention heads.
        head_width: channels of each head, in place of their number.
        residual_resampling: residual blocks halve (2x2 means) and double (nearest pixel) height and width; else
            convolutions do.
        projected_resampling: those blocks have a 1x1 convolution beside them, as those that change channels have.
        skip_scale: factor of every sum of an input and what a block or attention adds to it.
        sparse_attention: in the decoder, only the last block of a level has attention.
        zero_outputs: the last layer of blocks, attention and network starts at 0 and all others as torch initialises
            them; else with variances of 1e-10 and 1 over the mean of inputs and outputs, as Ho et al.'s.
        symmetric_padding: convolutions that halve height and width pad all four sides; else right and bottom only.
        cosines_first: of the timestep embedding; see :class:`lightning_ddpm.networks.layers.SinusoidalEmbedding`.
        eps: of GroupNorm.
        time_offset: subtracted from t before its embedding: 1 counts timesteps from 0; 0 for EDM's ln(sigma) / 4.
        early_label: the class is added to the features of the timestep, before the layers that embed these, as in EDM's
            DDPM++; else behind them.

    Raises:
        UserError: a number is out of range, or a setting excludes another.
    """

    def __init__(
        self,
        scale_shift: bool = False,
        heads: int = 1,
        head_width: int | None = None,
        residual_resampling: bool = False,
        projected_resampling: bool = False,
        skip_scale: float = 1.0,
        sparse_attention: bool = False,
        zero_outputs: bool = False,
        symmetric_padding: bool = False,
        cosines_first: bool = False,
        eps: float = 1e-6,
        time_offset: int = 1,
        early_label: bool = False,
    ) -> None:
        if heads < 1 or (head_width is not None and head_width < 1):
            raise UserError(f"heads and head_width must be at least 1, got {heads} and {head_width}")
        if heads > 1 and head_width is not None:
            raise UserError(f"give the number of heads or their width, got heads={heads} and head_width={head_width}")
        if not 0 < eps < 1 or not 0 < skip_scale <= 1:
            raise UserError(f"eps must lie in (0, 1) and skip_scale in (0, 1], got {eps} and {skip_scale}")
        if projected_resampling and not residual_resampling:
            raise UserError("projected_resampling is part of residual_resampling; set both or neither")
        if symmetric_padding and residual_resampling:
            raise UserError("residual_resampling has no convolution to pad; set symmetric_padding to false")
        self.scale_shift, self.heads, self.head_width = scale_shift, heads, head_width
        self.residual_resampling, self.projected_resampling = residual_resampling, projected_resampling
        self.skip_scale, self.sparse_attention, self.zero_outputs = skip_scale, sparse_attention, zero_outputs
        self.symmetric_padding, self.cosines_first, self.eps = symmetric_padding, cosines_first, eps
        self.time_offset, self.early_label = time_offset, early_label

    def count_heads(self, channels: int) -> int:
        """Return the number of heads of an attention layer; UserError if they do not divide its channels."""
        if channels % (self.head_width or self.heads):
            setting = f"head_width={self.head_width}" if self.head_width else f"heads={self.heads}"
            raise UserError(f"attention of {channels} channels cannot be divided with {setting}; give a divisor")
        return channels // self.head_width if self.head_width else self.heads

    def norm(self, channels: int, groups: int) -> nn.GroupNorm:
        """Build a GroupNorm."""
        return make_group_norm(channels, groups, self.eps)

    def conv(self, inputs: int, outputs: int, kernel: int = 3, is_last: bool = False) -> nn.Conv2d:
        """Build a convolution that keeps height and width; ``is_last`` in its block."""
        if self.zero_outputs:
            layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            return _set_zero(layer) if is_last else layer
        return make_conv(inputs, outputs, kernel, 1e-10 if is_last else 1.0)

    def linear(self, inputs: int, outputs: int, is_last: bool = False) -> nn.Linear:
        """Build a linear layer; ``is_last`` in its block."""
        if self.zero_outputs:
            layer = nn.Linear(inputs, outputs)
            return _set_zero(layer) if is_last else layer
        return make_linear(inputs, outputs, 1e-10 if is_last else 1.0)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """Add what a block computes to its input."""
        return x + change if self.skip_scale == 1 else self.skip_scale * (x + change)


def _set_zero(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
