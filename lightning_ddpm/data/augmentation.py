"""Augmentation that does not leak into generated images: the network is given what was done to a training image.

Karras et al. 2020 (arXiv:2006.06676) and 2022 (arXiv:2206.00364, appendix F.2). The parameters of the transformations
are a condition of the network, all of them 0 for an image as it is, and so in sampling.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom


class Augmentation(ABC):
    """Transforms training images at random.

    Attributes:
        parameters: number of numbers that describe what was done to an image.
    """

    parameters: int

    def check_images(self, channels: int) -> None:
        """Raise a UserError if images with this number of channels cannot be transformed."""
        return

    @abstractmethod
    def __call__(self, x_0: Tensor, random: PositionRandom) -> tuple[Tensor, Tensor]:
        """Return images (b, c, h, w) transformed, and the parameters (b, parameters), 0 where nothing was done.

        Args:
            x_0: images, in the range that the network is trained on.
            random: random numbers of the images.
        """


def augment(augmentations: Sequence[Augmentation], x_0: Tensor, random: PositionRandom) -> tuple[Tensor, Tensor]:
    """Return images after all augmentations, and their parameters side by side, (b, count)."""
    found = []
    with torch.no_grad(), torch.autocast(x_0.device.type, enabled=False):
        for each in augmentations:
            x_0, parameters = each(x_0, random)
            found.append(parameters)
    return x_0, torch.cat(found, dim=1)


def check_probability(augmentation: Augmentation, probability: float) -> float:
    """Return the probability of a transformation; UserError unless it lies in (0, 1]."""
    if not 0 < probability <= 1:
        raise UserError(
            f"{type(augmentation).__name__} needs a probability in (0, 1], got {probability}; Karras et al. 2022 use "
            "0.12 and 0.15"
        )
    return probability


class Choice:
    """The random numbers of images, of which each transformation changes some.

    Args:
        random: random numbers of the images.
        probability: of each transformation, for an image.
    """

    def __init__(self, random: PositionRandom, probability: float) -> None:
        self._random, self._probability = random, probability

    def _choose(self, probability: float | None = None) -> Tensor:
        return self._random.rand() < (self._probability if probability is None else probability)

    def normal(self, n: int = 1) -> list[Tensor]:
        """Return n standard normal numbers of each image, n of (b,), all 0 for the images that are not chosen."""
        chosen = self._choose()
        sampled = [self._random(lambda b, each: torch.randn(b, device=each.device, generator=each)) for _ in range(n)]
        return [torch.where(chosen, each, 0.0) for each in sampled]

    def uniform(self, half_width: float) -> Tensor:
        """Return uniform numbers in +- half_width (b,), 0 for the images that are not chosen."""
        return torch.where(self._choose(), half_width * (2 * self._random.rand() - 1), 0.0)

    def flip(self, probability: float | None = None) -> Tensor:
        """Return 1 for a half of the chosen images and 0 for the others, (b,) float32."""
        return (self._choose(probability) & (self._random.rand() < 0.5)).float()
