"""Flips, scaling, rotation, stretching and shifts; Karras et al. 2022 (arXiv:2206.00364), table 6."""

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from lightning_ddpm.data.augmentation import Augmentation, Choice, check_probability
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom


@final
class GeometricAugmentation(Augmentation):
    """Mirrors, scales, rotates, stretches and shifts training images, each with the same probability.

    The 9 parameters of an image: mirrored, upside down (0 or 1), scaled by a power of 2^(0.2 z), rotated (cos - 1 and
    sin of the angle, any), stretched along an axis by 2^(0.2 z) (z times cos and sin of its direction), and shifted
    (z for each side, in eighths of it), where z is standard normal. Beyond its edges an image is reflected. Pixels are
    interpolated bicubically at twice the resolution, where Karras et al. filter by wavelets (sym6).

    Args:
        probability: of each transformation (Karras et al.: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2).
        mirror: probability that an image is mirrored or not at random; theirs is 1, as without other augmentation.
        scale: z = 1 scales by 2^scale.
        stretch: z = 1 stretches by 2^stretch.
        shift: z = 1 shifts by this share of a side.
    """

    parameters = 9

    def __init__(
        self,
        probability: float = 0.12,
        mirror: float = 1.0,
        scale: float = 0.2,
        stretch: float = 0.2,
        shift: float = 0.125,
    ) -> None:
        self.probability = check_probability(self, probability)
        if not (0 <= mirror <= 1 and all(0 <= each < 2 for each in (scale, stretch, shift))):
            raise UserError(
                "GeometricAugmentation needs mirror in [0, 1] and scale, stretch and shift in [0, 2), got "
                f"{mirror}, {scale}, {stretch} and {shift}; Karras et al. use 1, 0.2, 0.2 and 0.125"
            )
        self.mirror, self.scale, self.stretch, self.shift = mirror, scale, stretch, shift

    def __call__(self, x_0: Tensor, random: PositionRandom) -> tuple[Tensor, Tensor]:
        choice = Choice(random, self.probability)
        mirrored, upended = choice.flip(self.mirror), choice.flip()
        (scaled,), angle, (stretched,) = choice.normal(), choice.uniform(math.pi), choice.normal()
        # half of the images are stretched along an axis of their own, in any direction
        direction = torch.where(random.rand() < 0.5, math.pi * (2 * random.rand() - 1), 0.0)
        across, down = choice.normal(2)
        parameters = [mirrored, upended, scaled, angle.cos() - 1, angle.sin()]
        parameters += [stretched * direction.cos(), stretched * direction.sin(), across, down]

        x_0 = torch.where(_broadcast(mirrored) == 1, x_0.flip(3), x_0)
        x_0 = torch.where(_broadcast(upended) == 1, x_0.flip(2), x_0)
        longer = (self.stretch * stretched).exp2()
        linear = _rotate(angle) @ _rotate(-direction) @ torch.diag_embed(torch.stack([1 / longer, longer], 1))
        linear = linear @ _rotate(direction) * (-self.scale * scaled).exp2()[:, None, None]
        sides = torch.tensor([x_0.shape[3], x_0.shape[2]], device=x_0.device)
        offset = -(linear @ (self.shift * torch.stack([across, down], 1) * sides)[:, :, None])[:, :, 0]
        changed = torch.stack(parameters[2:], 1).ne(0).any(1)
        x_0 = torch.where(_broadcast(changed), resample(x_0, linear, offset), x_0)
        return x_0, torch.stack(parameters, dim=1)


def resample(x_0: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Return images whose pixel at p, from the centre, is that of the given images at ``linear p + offset``.

    Bicubic interpolation at four points of each pixel, whose mean is taken against aliasing.

    Args:
        x_0: (b, c, h, w) images.
        linear: (b, 2, 2), of (x, y) in pixels.
        offset: (b, 2), in pixels.
    """
    height, width = x_0.shape[2:]
    x, y = ((torch.arange(2 * n, device=x_0.device) + 0.5) / 2 - n / 2 for n in (width, height))
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    sources = torch.einsum("bij,hwj->bhwi", linear, points) + offset[:, None, None]
    grid = sources / torch.tensor([width / 2, height / 2], device=x_0.device)
    options = {"mode": "bicubic", "padding_mode": "reflection", "align_corners": False}
    return functional.avg_pool2d(functional.grid_sample(x_0.float(), grid, **options), 2).to(x_0.dtype)  # type: ignore[arg-type]


def _rotate(angle: Tensor) -> Tensor:
    """Return the matrices of rotation (b, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _broadcast(values: Tensor) -> Tensor:
    return values[:, None, None, None]
