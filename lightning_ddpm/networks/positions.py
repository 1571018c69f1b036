"""Where a patch is in its image: features that are added to it, or a rotation of queries and keys."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_ddpm.utils.errors import UserError


def _angles(rows: int, columns: int, frequencies: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each of rows x columns patches times 10000^(-k/n), k < n: (rows * columns, n) each."""
    frequency = torch.exp(-math.log(10000) * torch.arange(frequencies, dtype=torch.float64) / frequencies)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.outer(row.flatten().double(), frequency), torch.outer(column.flatten().double(), frequency)


def embed_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return [sin, cos] of the column and [sin, cos] of the row of each patch, (rows * columns, width) float32.

    Peebles & Xie 2023 (arXiv:2212.09748); the formula of Dosovitskiy et al.'s and He et al.'s code.

    Raises:
        UserError: width is not a multiple of 4.
    """
    if width % 4:
        raise UserError(f"positions need a width that is a multiple of 4, got {width}")
    row, column = _angles(rows, columns, width // 4)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()


class RotaryPositions(nn.Module):
    """Rotates pairs of features by angles in proportion to the row, in their first half, and to the column.

    Products of rotated queries and keys depend on the difference of positions alone: Su et al. 2021
    (arXiv:2104.09864), in two dimensions as in Li & He 2025 (arXiv:2511.13720).

    Args:
        rows, columns: of patches.
        width: of the heads, a multiple of 4.
        others: number of tokens before the patches that are not rotated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, rows: int, columns: int, width: int, others: int = 0) -> None:
        super().__init__()
        if width % 4:
            raise UserError(f"rotary positions need heads of a width that is a multiple of 4, got {width}")
        angle = torch.cat(_angles(rows, columns, width // 4), dim=1)
        angle = torch.cat([angle.new_zeros(others, width // 2), angle])
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (b, heads, n, width), n with or without the other tokens."""
        n = x.shape[2]
        cos, sin = self.cos[-n:].float(), self.sin[-n:].float()
        first, second = rearrange(x, "b heads n (pairs two) -> two b heads n pairs", two=2)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
        return turned.flatten(-2).to(x.dtype)
