"""The encoder of Ho et al.'s U-Net as a classifier of noisy images; Dhariwal & Nichol 2021 (arXiv:2105.05233)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.networks.blocks import AttentionPool
from lightning_ddpm.networks.layers import make_group_norm
from lightning_ddpm.networks.padding import get_padding, pad
from lightning_ddpm.networks.unet import build_encoder, run_encoder
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize


class UNetEncoder(nn.Module):
    """Classifier of noisy images x_t: a U-Net's encoder and middle, followed by attention pooling.

    Args:
        channels, size, width, multipliers, attention, blocks, dropout, groups, pad_to_multiple: see :class:`UNet`.
        classes: number of classes. On the command line ``null`` takes the data's.

    Raises:
        UserError: the combination of arguments cannot be built; the message states the fix.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: ImageSize | None = None,
        classes: int | None = None,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention: Sequence[int] = (16,),
        blocks: int = 2,
        dropout: float = 0.1,
        groups: int = 32,
        pad_to_multiple: int = 1,
    ) -> None:
        super().__init__()
        if not classes or classes < 1:
            raise UserError(f"UNetEncoder needs the number of classes, got {classes}; use a dataset with labels")
        parts = build_encoder(
            channels, size, width, multipliers, attention, blocks, dropout, groups, pad_to_multiple=pad_to_multiple
        )
        self.pad_to_multiple = pad_to_multiple
        (self.channels, self.size), self.classes = parts.shape, classes
        self.embed, self.first, self.down, self.middle1, self.middle2 = parts[:5]
        self.norm = make_group_norm(parts.skips[-1], groups)
        self.pool = AttentionPool(parts.skips[-1], parts.sides[0] * parts.sides[1], classes)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Map noisy images (b, channels, height, width) and timesteps (b,) in 1..T to logits (b, classes)."""
        embedding = self.embed(t)
        x_t = pad(x_t, get_padding(x_t, self.pad_to_multiple))
        h = run_encoder(self.first, self.down, x_t, embedding)[-1]
        h = self.middle2(self.middle1(h, embedding), embedding)
        return self.pool(functional.silu(self.norm(h)))  # type: ignore[no-any-return]
