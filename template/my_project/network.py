"""The network: from x_t, t and what images are conditioned on, if anything, it predicts the noise in x_t."""

import torch
from lightning_ddpm.networks.conditions import ConditionEmbedding, Conditions  #: paired
from lightning_ddpm.utils.condition import Condition, as_condition  #: paired
from lightning_ddpm.utils.errors import UserError
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block of two convolutions, between which the condition (b, width) shifts the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.shift = nn.Linear(width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        return h + self.second(self.first(h) + self.shift(condition)[:, :, None, None])


class Network(nn.Module):
    """Six blocks, four of them at half the size; x_t (b, c, h, w), t (b,), condition or none -> (b, c, h, w).

    Args:
        channels, size, classes: those of the data, which fill in null; without classes the label is never given.
        width: number of channels of the hidden layers.
        conditions: embeddings of the image that is given, and of anything else.  #: paired
    """

    def __init__(
        self,
        channels: int | None = None,
        size: int | None = None,
        classes: int | None = 0,
        width: int = 64,
        conditions: list[ConditionEmbedding] | None = None,  #: paired
    ) -> None:
        super().__init__()
        if classes is None:
            raise UserError("the images have no classes; label them, or set model.network.classes to 0")
        self.channels, self.size, self.classes, self.width = channels, size, classes, width
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.embed_label = nn.Embedding(classes + 1, width) if classes else None  # the last one: no class
        self.conditions = Conditions(conditions or ())  #: paired
        self.conditions.build(width)  #: paired
        self.first = nn.Conv2d(channels, width, 3, padding=1)  #: digits|folder|array
        self.first = nn.Conv2d(channels + self.conditions.channels, width, 3, padding=1)  #: paired
        self.last, self.down = nn.Conv2d(width, channels, 3, padding=1), nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(6))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None = None,  #: digits|folder|array
        condition: Condition | None = None,  #: paired
    ) -> Tensor:
        given = as_condition(condition)  #: paired
        label, x_t = given.label, self.conditions.concatenate(x_t, given)  #: paired
        frequency = 10_000 ** -torch.linspace(0, 1, self.width // 2, device=t.device)
        angle = t[:, None] * frequency
        embedding = self.embed_time(torch.cat([angle.sin(), angle.cos()], dim=1).to(x_t.dtype))
        if self.embed_label is not None:
            label = torch.full_like(t, -1, dtype=torch.long) if label is None else label
            embedding = embedding + self.embed_label(label % (self.classes + 1))  # -1, no class, is the last one
        embedding = self.conditions.add(embedding, given, t)  #: paired
        h = self.blocks[0](self.first(x_t), embedding)
        low = self.down(h)
        for block in self.blocks[1:-1]:
            low = block(low, embedding)
        h = h + nn.functional.interpolate(low, size=h.shape[-2:])
        return self.last(self.blocks[-1](h, embedding))
