"""Embeddings of what augmentation did to a training image; Karras et al. 2022 (arXiv:2206.00364), appendix F.2."""

from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.networks.conditions import AddedCondition, EarlyCondition
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError


@final
class AugmentationEmbedding(AddedCondition):
    """A linear layer of the parameters of augmentation, without bias: 0 for images as they are, and so in sampling.

    It is added behind the layers that embed the timestep, as other conditions are, and starts at 0.

    Args:
        parameters: number of parameters of all ``model.augmentations`` together: 9 for ``GeometricAugmentation``, and
            6 for ``ColourAugmentation``.
    """

    kind = "augmentation"
    comes_from_data = False

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.parameters_of_images = _check_parameters(type(self).__name__, parameters)

    def build(self, dim: int) -> None:
        self.linear = nn.Linear(self.parameters_of_images, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Return the embedding (b, dim) of the parameters, whether or not other conditions are hidden."""
        return _embed(self.linear, condition, t)


@final
class EarlyAugmentationEmbedding(EarlyCondition):
    """The same linear layer as ``map_augment`` in the code of Karras et al. 2022.

    There it is added to the sinusoidal features of the noise level, before the layers that embed these, and starts as
    those layers do.

    Args:
        parameters: number of parameters of all ``model.augmentations`` together: 9 for ``GeometricAugmentation``, and
            6 for ``ColourAugmentation``.
    """

    kind = "augmentation"
    comes_from_data = False

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.parameters_of_images = _check_parameters(type(self).__name__, parameters)

    def build(self, dim: int) -> None:
        self.linear = nn.Linear(self.parameters_of_images, dim, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Return what is added to the features (b, dim), whether or not other conditions are hidden."""
        return _embed(self.linear, condition, t)


def _check_parameters(name: str, parameters: int) -> int:
    if parameters < 1:
        raise UserError(f"{name} needs at least 1 parameter, got {parameters}")
    return parameters


def _embed(linear: nn.Linear, condition: Condition, t: Tensor) -> Tensor:
    """Return the layer's output (b, dim) for the parameters of augmentation, 0 where there are none."""
    given = condition.augmentation
    if given is None:
        given = torch.zeros(len(t), linear.in_features, device=t.device)
    return linear(given.to(linear.weight.dtype))  # type: ignore[no-any-return]
