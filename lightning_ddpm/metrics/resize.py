"""Resizes to the input size of a feature network: an FID depends on them (Parmar et al. 2022, arXiv:2104.11222)."""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import interpolate
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x


class Resize(ABC):
    """A resize in float32, without rounding.

    Attributes:
        suffix: suffix of the names of metrics under this resize; empty for that of the published FID.
        description: the resize in words, part of the protocol.
    """

    suffix: str
    description: str

    @abstractmethod
    def __call__(self, x: Tensor, size: int) -> Tensor:
        """Resize (b, c, h, w) floats in 0..255 to (b, c, size, size)."""


class TF1(Resize):
    """TensorFlow 1's bilinear resize, as in every published FID: half a pixel off, without antialiasing."""

    suffix = ""
    description = "TF1 bilinear resize without antialiasing"

    def __call__(self, x: Tensor, size: int) -> Tensor:
        resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(x, size=(size, size), align_corners=False)
        return resized


class Antialiased(Resize):
    """Pillow's antialiased bicubic resize of floats, clipped to 0..255, as clean-fid's (mode "clean")."""

    suffix = "antialiased"
    description = "antialiased bicubic resize of floats, as clean-fid"

    def __call__(self, x: Tensor, size: int) -> Tensor:
        return interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)


class TorchMetrics(Resize):
    """torchmetrics' default since 1.8: antialiased bilinear."""

    suffix = "torchmetrics"
    description = "antialiased bilinear resize, as torchmetrics' default"

    def __call__(self, x: Tensor, size: int) -> Tensor:
        return interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
