"""Changes of brightness, contrast, luminance, hue and saturation; Karras et al. 2020 (arXiv:2006.06676), appendix B."""

import math
from typing import final

import torch
from torch import Tensor

from lightning_ddpm.data.augmentation import Augmentation, Choice, check_probability
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom


@final
class ColourAugmentation(Augmentation):
    """Changes the colours of training images with 1 or 3 channels, each property with the same probability.

    The 6 parameters of an image: brightness (0.2 z is added), contrast (factor 2^(0.5 z)), inverted luminance (0 or 1),
    hue (cos - 1 and sin of the angle of rotation around the gray axis, any) and saturation (factor 2^z), where z is
    standard normal. Gray images have neither hue nor saturation, whose parameters then describe nothing.

    Args:
        probability: of each transformation.
        brightness: z = 1 adds this, where values are in [-1, 1].
        contrast: z = 1 multiplies by 2^contrast.
        saturation: z = 1 multiplies by 2^saturation.
    """

    parameters = 6

    def __init__(
        self, probability: float = 0.12, brightness: float = 0.2, contrast: float = 0.5, saturation: float = 1.0
    ) -> None:
        self.probability = check_probability(self, probability)
        if not all(0 <= each < 4 for each in (brightness, contrast, saturation)):
            raise UserError(
                "ColourAugmentation needs brightness, contrast and saturation in [0, 4), got "
                f"{brightness}, {contrast} and {saturation}; Karras et al. use 0.2, 0.5 and 1"
            )
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def check_images(self, channels: int) -> None:
        if channels not in (1, 3):
            raise UserError(f"ColourAugmentation changes images with 1 or 3 channels, got {channels}; leave it out")

    def __call__(self, x_0: Tensor, random: PositionRandom) -> tuple[Tensor, Tensor]:
        choice = Choice(random, self.probability)
        (brighter,), (contrasted,), inverted = choice.normal(), choice.normal(), choice.flip()
        angle, (saturated,) = choice.uniform(math.pi), choice.normal()
        parameters = torch.stack([brighter, contrasted, inverted, angle.cos() - 1, angle.sin(), saturated], dim=1)
        changed = parameters.ne(0).any(1)[:, None, None, None]

        bright = (x_0.float() + _spread(self.brightness * brighter)) * _spread((self.contrast * contrasted).exp2())
        gray = bright.mean(1, keepdim=True)
        colour = bright - gray
        if x_0.shape[1] == 3:
            colour = _turn(colour, angle) * _spread((self.saturation * saturated).exp2())
        return torch.where(changed, (1 - 2 * _spread(inverted)) * gray + colour, x_0).to(x_0.dtype), parameters


def _turn(colour: Tensor, angle: Tensor) -> Tensor:
    """Rotate colours (b, 3, h, w), which are orthogonal to the gray axis, around it by the angles (b,)."""
    red, green, blue = colour.unbind(1)
    quarter = torch.stack([blue - green, red - blue, green - red], dim=1) / math.sqrt(3)
    return _spread(angle.cos()) * colour + _spread(angle.sin()) * quarter


def _spread(values: Tensor) -> Tensor:
    return values[:, None, None, None]
