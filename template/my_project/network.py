"""The network: from x_t and t, and the class if there are classes, it predicts the noise in x_t."""

import torch
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
    """Six blocks, four of them at half the size; x_t (b, c, h, w), t (b,), label (b,) or none -> (b, c, h, w).

    Args:
        channels, size, classes: those of the data, which fill in null; without classes the label is never given.
        width: number of channels of the hidden layers.
    """

    def __init__(
        self, channels: int | None = None, size: int | None = None, classes: int | None = 0, width: int = 64
    ) -> None:
        super().__init__()
        self.channels, self.size, self.classes, self.width = channels, size, classes, width
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.embed_label = nn.Embedding(classes + 1, width) if classes else None  # the last one: no class
        self.first, self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(6))

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        frequency = 10_000 ** -torch.linspace(0, 1, self.width // 2, device=t.device)
        angle = t[:, None] * frequency
        condition = self.embed_time(torch.cat([angle.sin(), angle.cos()], dim=1).to(x_t.dtype))
        if self.embed_label is not None:
            label = torch.full_like(t, -1, dtype=torch.long) if label is None else label
            condition = condition + self.embed_label(label % (self.classes + 1))  # -1, no class, is the last one
        h = self.blocks[0](self.first(x_t), condition)
        low = self.down(h)
        for block in self.blocks[1:-1]:
            low = block(low, condition)
        h = h + nn.functional.interpolate(low, size=h.shape[-2:])
        return self.last(self.blocks[-1](h, condition))
