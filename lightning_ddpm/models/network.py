"""The contract between :class:`~lightning_ddpm.models.ddpm.DDPM` and its network, and how to bring your own.

A network is an ``nn.Module`` with two attributes and one method::

    class MyNetwork(nn.Module):
        def __init__(self, channels: int, size: int) -> None:
            super().__init__()
            self.channels, self.size = channels, size
            self.layer = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.layer(x_t)

In a config it is ``model.network: {class_path: your_module.MyNetwork}``. The data gives it ``channels`` and ``size``.

- Input: ``x_t`` (b, c, h, w), the noisy images, and ``t`` (b,), timesteps in 1..T: int64, or real-valued from solvers
  that stop between timesteps.
- Output: (b, c, h, w), the prediction of the noise, or of what ``model.parameterization`` names. With (b, 2c, h, w) the
  second half is the learned variance of the reverse steps (Nichol & Dhariwal 2021, arXiv:2102.09672).
- Classes: a network with an int attribute ``classes`` above 0 is also called as ``network(x_t, t, label)``, where
  ``label`` (b,) is int64 in 0..classes - 1, or -1 for no class. It must accept both calls: ``network(x_t, t)`` means no
  class.
- Dropout and other layers with random numbers use torch's global generators, which are seeded at each training step.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from lightning_ddpm.utils.errors import UserError


class Network(Protocol):
    """A network as DDPM calls it; the rules are in the description of this module.

    Attributes:
        channels: image channels.
        size: image height and width.
    """

    channels: int
    size: int

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the noise from x_t (b, c, h, w) and t (b,): (b, c, h, w), or (b, 2c, h, w) with the variance."""


def check_network(network: nn.Module) -> None:
    """Check that a network has the attributes of :class:`Network`.

    Raises:
        UserError: one is missing, or is not an int.
    """
    for name in ("channels", "size"):
        if not isinstance(value := getattr(network, name, None), int):
            raise UserError(
                f"{type(network).__name__} needs an int attribute {name!r}, the {name} of its images, got {value!r}; "
                f"set self.{name} in its __init__"
            )


def name_classes(names: Sequence[str] | None, classes: int) -> list[str]:
    """Return the names of a network's classes: those given, or ``None`` for their numbers.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    names = [str(label) for label in range(classes)] if names is None else list(names)
    if len(names) != classes:
        raise UserError(
            f"class_names has {len(names)} names and the network {classes} classes; give one name for each class"
        )
    return names
