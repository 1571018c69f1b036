"""Embeddings of what augmentation did to a training image; Karras et al. 2022 (arXiv:2206.00364), appendix F.2."""

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.networks.conditions import AddedCondition, ConditionEmbedding, EarlyCondition
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError


class _LinearEmbedding(ConditionEmbedding):
    """A linear layer of the parameters of augmentation, without bias: 0 for images as they are, and so in sampling."""

    kind = "augmentation"
    comes_from_data = False

    def __init__(self, parameters: int) -> None:
        super().__init__()
        if parameters < 1:
            raise UserError(f"{type(self).__name__} needs at least 1 parameter, got {parameters}")
        self.parameters_of_images = parameters

    def build(self, dim: int) -> None:
        self.linear = nn.Linear(self.parameters_of_images, dim, bias=False)
        self._initialise(self.linear.weight)

    @abstractmethod
    def _initialise(self, weight: Tensor) -> None:
        """Set the weight (dim, parameters) of a new layer."""

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Return the layer's output (b, dim), whether or not other conditions are hidden."""
        given = condition.augmentation
        if given is None:
            given = torch.zeros(len(t), self.parameters_of_images, device=t.device)
        return self.linear(given.to(self.linear.weight.dtype))  # type: ignore[no-any-return]


@final
class AugmentationEmbedding(_LinearEmbedding, AddedCondition):
    """A linear layer of the parameters of augmentation, without bias: 0 for images as they are, and so in sampling.

    It is added behind the layers that embed the timestep, as other conditions are, and starts at 0.

    Args:
        parameters: number of parameters of all ``model.augmentations`` together: 9 for ``GeometricAugmentation``, and
            6 for ``ColourAugmentation``.
    """

    def _initialise(self, weight: Tensor) -> None:
        nn.init.zeros_(weight)


@final
class EarlyAugmentationEmbedding(_LinearEmbedding, EarlyCondition):
    """The same linear layer as ``map_augment`` in the code of Karras et al. 2022.

    There it is added to the sinusoidal features of the noise level, before the layers that embed these, and starts as
    those layers do.

    Args:
        parameters: number of parameters of all ``model.augmentations`` together: 9 for ``GeometricAugmentation``, and
            6 for ``ColourAugmentation``.
    """

    def _initialise(self, weight: Tensor) -> None:
        nn.init.xavier_uniform_(weight)
