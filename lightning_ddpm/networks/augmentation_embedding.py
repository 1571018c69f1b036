"""Embedding of what augmentation did to a training image."""

from typing import final

import torch
from torch import Tensor, nn

from lightning_ddpm.networks.conditions import AddedCondition
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError


@final
class AugmentationEmbedding(AddedCondition):
    """A linear layer of the parameters of augmentation, without bias: 0 for images as they are, and so in sampling.

    Karras et al. 2022 (arXiv:2206.00364), appendix F.2; their code adds it before the layers that embed the noise
    level, and conditions are added behind them here. It starts at 0.

    Args:
        parameters: number of parameters of all ``model.augmentations`` together: 9 for ``GeometricAugmentation``, and
            6 for ``ColourAugmentation``.
    """

    kind = "augmentation"
    comes_from_data = False

    def __init__(self, parameters: int) -> None:
        super().__init__()
        if parameters < 1:
            raise UserError(f"AugmentationEmbedding needs at least 1 parameter, got {parameters}")
        self.parameters_of_images = parameters

    def build(self, dim: int) -> None:
        self.linear = nn.Linear(self.parameters_of_images, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Return the embedding (b, dim) of the parameters, whether or not other conditions are hidden."""
        given = condition.augmentation
        if given is None:
            given = torch.zeros(len(t), self.parameters_of_images, device=t.device)
        return self.linear(given.to(self.linear.weight.dtype))  # type: ignore[no-any-return]
