"""The network: from x_t, t and what images are conditioned on, if anything, it predicts the noise in x_t."""

import torch
from lightning_ddpm.networks import LabelEmbedding, ResidualBlock, SinusoidalEmbedding
from lightning_ddpm.networks.condition_embeddings import ConcatenatedImage  #: paired
from lightning_ddpm.utils.condition import Condition, as_condition
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Network(nn.Module):
    """Residual blocks: one at full size, four at half of it, which is even, and one at full size that sees both."""

    def __init__(
        self, channels: int | None = None, size: int | None = None, classes: int | None = 0, width: int = 64
    ) -> None:
        super().__init__()
        self.channels, self.size, self.classes = channels, size, classes
        self.embed_time = nn.Sequential(SinusoidalEmbedding(width), nn.Linear(width, width), nn.SiLU())
        self.embed_label = LabelEmbedding(classes, width)  # and, as the last one, no class
        self.first = nn.Conv2d(channels, width // 2, 3, padding=1)  #: digits|folder|array
        self.conditions = nn.ModuleList([ConcatenatedImage(channels, size)])  #: paired
        self.first = nn.Conv2d(channels + self.conditions[0].channels, width // 2, 3, padding=1)  #: paired
        sizes = [(width // 2, width // 2), (2 * width, width), *3 * [(width, width)], (3 * width // 4, width // 2)]
        self.blocks = nn.ModuleList(ResidualBlock(*each, width, groups=4, dropout=0.0) for each in sizes)
        self.last = nn.Conv2d(width // 2, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        given = as_condition(condition)  # labels alone, (b,), are a condition, too
        embedding = self.embed_time(t) + self.embed_label(given, t)
        x_t = self.conditions[0](given, x_t)  #: paired
        x = self.blocks[0](self.first(x_t), embedding)
        h = pixel_unshuffle(x, 2)
        for block in self.blocks[1:-1]:
            h = block(h, embedding)
        return self.last(self.blocks[-1](torch.cat([x, pixel_shuffle(h, 2)], dim=1), embedding))
