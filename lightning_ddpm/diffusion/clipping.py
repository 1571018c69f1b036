"""What samplers do with a predicted x_0 that leaves the range of bounded data."""

import math
from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from lightning_ddpm.utils.errors import UserError


class Clipping(ABC):
    """Moves predicted images into the range of the data, or leaves them as they are."""

    @abstractmethod
    def __call__(self, x_0: Tensor, limit: float) -> Tensor:
        """Return images (b, c, h, w) in [-limit, limit], given predictions x_0 of the same shape; or x_0 itself."""


@final
class ClipToRange(Clipping):
    """Sets values outside the range to its nearer end, as Ho et al. 2020 do."""

    def __call__(self, x_0: Tensor, limit: float) -> Tensor:
        return x_0.clamp(-limit, limit)

    def __str__(self) -> str:
        return "ClipToRange"


@final
class NoClipping(Clipping):
    """Leaves predictions as they are, as the samplers of Karras et al. 2022 and of flow matching do.

    The generated image alone is moved into the range, where it is rounded to the data's values.
    """

    def __call__(self, x_0: Tensor, limit: float) -> Tensor:
        return x_0

    def __str__(self) -> str:
        return "NoClipping"


@final
class QuantileThreshold(Clipping):
    """Scales an image down where too many of its values leave the range: dynamic thresholding, Saharia et al. 2022.

    (Imagen, arXiv:2205.11487, section 2.3.) s is the least number such that a share of ``quantile`` of the image's
    values lie in [-s, s]. If s is above the limit, values are clipped to [-s, s] and multiplied by limit / s; else they
    are clipped to the range. Guidance with a large scale saturates fewer values so.

    Args:
        quantile: that share, in (0, 1]; Saharia et al. take 0.995 (their appendix E).
    """

    def __init__(self, quantile: float = 0.995) -> None:
        if not 0 < quantile <= 1:
            raise UserError(f"the quantile is a share of an image's values, above 0 and at most 1, got {quantile}")
        self.quantile = quantile

    def __call__(self, x_0: Tensor, limit: float) -> Tensor:
        values = x_0.abs().flatten(1)
        place = min(max(1, math.ceil(self.quantile * values.shape[1])), values.shape[1])
        # not torch.quantile, which refuses more than 2^24 values
        s = values.kthvalue(place, dim=1).values.clamp(min=limit).reshape(-1, 1, 1, 1)
        return x_0.clamp(-s, s) * (limit / s)

    def __str__(self) -> str:
        return f"QuantileThreshold(quantile={self.quantile:g})"
