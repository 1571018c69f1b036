"""The network: from x_t, t and what images are conditioned on, if anything, it predicts the noise in x_t."""

from lightning_ddpm.networks import LabelEmbedding, ResidualBlock, SinusoidalEmbedding
from lightning_ddpm.networks.condition_embeddings import ConcatenatedImage  #: paired
from lightning_ddpm.utils.condition import Condition, as_condition
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Network(nn.Module):
    """Six residual blocks at half the size, which is even; x_t (b, c, h, w), t (b,), condition -> (b, c, h, w)."""

    def __init__(
        self, channels: int | None = None, size: int | None = None, classes: int | None = 0, width: int = 64
    ) -> None:
        super().__init__()
        self.channels, self.size, self.classes = channels, size, classes
        self.embed_time = nn.Sequential(SinusoidalEmbedding(width), nn.Linear(width, width), nn.SiLU())
        self.embed_label = LabelEmbedding(classes, width)  # and, as the last one, no class
        self.first = nn.Conv2d(4 * channels, width, 3, padding=1)  #: digits|folder|array
        self.conditions = nn.ModuleList([ConcatenatedImage(channels, size)])  #: paired
        self.first = nn.Conv2d(4 * (channels + self.conditions[0].channels), width, 3, padding=1)  #: paired
        self.blocks = nn.ModuleList(ResidualBlock(width, width, width, groups=8, dropout=0.0) for _ in range(6))
        self.last = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Tensor:
        given = as_condition(condition)  # labels alone, (b,), are a condition, too
        embedding = self.embed_time(t) + self.embed_label(given, t)
        x_t = self.conditions[0](given, x_t)  #: paired
        h = self.first(pixel_unshuffle(x_t, 2))
        for block in self.blocks:
            h = block(h, embedding)
        return pixel_shuffle(self.last(h), 2)
