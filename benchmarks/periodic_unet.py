"""A U-Net for periodic fields: what leaves an image on one side enters it on the other."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_ddpm.networks import UNet
from lightning_ddpm.networks.blocks import DownsampleConv
from lightning_ddpm.networks.conditions import ConditionEmbedding
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.image_size import ImageSize


class PeriodicUNet(nn.Module):
    """Ho et al.'s U-Net, without attention, with circular padding in all of its convolutions.

    Args:
        channels, size: of the images; on the command line ``null`` for the data's.
        width, multipliers, blocks, groups, conditions: as in :class:`~lightning_ddpm.networks.UNet`.
    """

    def __init__(
        self,
        channels: int | None = None,
        size: ImageSize | None = None,
        width: int = 16,
        multipliers: Sequence[int] = (1, 1, 2, 2),
        blocks: int = 1,
        groups: int = 8,
        conditions: Sequence[ConditionEmbedding] = (),
    ) -> None:
        super().__init__()
        self.network = UNet(channels, size, width, multipliers, [], blocks, 0.0, groups, conditions=conditions)
        self.channels, self.size = self.network.channels, self.network.size
        for layer in list(self.network.modules()):
            if isinstance(layer, DownsampleConv):
                old, layer.padding = layer.conv, (0, 0, 0, 0)
                layer.conv = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=2, padding=1)
                layer.conv.load_state_dict(old.state_dict())
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "circular"

    @property
    def conditions(self) -> nn.Module:
        """The embeddings of conditions."""
        return self.network.conditions

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict the noise in x_t (b, c, h, w), t (b,), given the condition."""
        return self.network(x_t, t, condition)  # type: ignore[no-any-return]
