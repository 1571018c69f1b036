"""The contract between :class:`~lightning_ddpm.models.ddpm.DDPM` and its network, and how to bring your own.

A network is an ``nn.Module`` with two attributes and one method::

    class MyNetwork(nn.Module):
        def __init__(self, channels: int, size: int) -> None:
            super().__init__()
            self.channels, self.size = channels, size
            self.layer = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.layer(x_t)

In a config it is ``model.network: {class_path: your_module.MyNetwork}``. The data gives it ``channels`` and ``size``. A
network of images that are not square has ``size = (height, width)``, and ``size: ImageSize`` (an int or two,
:mod:`lightning_ddpm.utils.image_size`) in its ``__init__``; one that takes ``size: int`` is for square images alone.

- Input: ``x_t`` (b, c, h, w), the noisy images, and ``t`` (b,), timesteps in 1..T: int64, or real-valued from solvers
  that stop between timesteps and on continuous paths. With the parameterization EDM it is ln(sigma) / 4 instead.
- Output: (b, c, h, w), the prediction of the noise, or of what ``model.parameterization`` names. With (b, 2c, h, w) the
  second half is the learned variance of the reverse steps (Nichol & Dhariwal 2021, arXiv:2102.09672).
- Classes: without an attribute ``classes``, or with ``None`` or 0 in it, a network is unconditional, whatever labels
  the data has. One with an int above 0 there is also called as ``network(x_t, t, label)``, where ``label`` (b,) is
  int64 in 0..classes - 1, or -1 for no class. It must accept both calls: ``network(x_t, t)`` means no class.
- Other conditions: a network with an attribute ``conditions``, embeddings of :mod:`lightning_ddpm.networks.conditions`,
  is called as ``network(x_t, t, condition)`` with a :class:`~lightning_ddpm.utils.condition.Condition`; for an example,
  see the ``forward`` of :class:`~lightning_ddpm.networks.unet.UNet`.
- Mean velocities: a network with a true attribute ``intervals`` is also called with the keyword ``interval`` (b,), the
  length t - s of a step from t to s, over which it then predicts the mean velocity; the objective ``MeanFlow`` trains
  it. It must also accept calls without the keyword, which mean the velocity at t.
- Dropout and other layers with random numbers use torch's global generators, which are seeded at each training step.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from lightning_ddpm.utils.contracts import check_call, check_image_attributes, describe_class
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, get_sides


class Network(Protocol):
    """A network as DDPM calls it; the rules are in the description of this module.

    Attributes:
        channels: image channels.
        size: image height and width; one number for a square.
    """

    channels: int
    size: ImageSize

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the noise from x_t (b, c, h, w) and t (b,): (b, c, h, w), or (b, 2c, h, w) with the variance."""


def check_network(network: nn.Module) -> None:
    """Check that a network has the attributes of :class:`Network`, and ``classes`` of a meaning if it has any.

    Raises:
        UserError: ``channels`` is not an int above 0, or ``size`` neither that nor two of them; or
            ``classes`` is neither ``None`` nor an int.
    """
    name = describe_class(type(network))
    check_image_attributes(network, name, "set self.{} in its __init__")
    classes = getattr(network, "classes", None)
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 0):
        raise UserError(
            f"{name} has the attribute classes={classes!r}; it must be the number of its classes, or 0 or None for none"
        )


def get_image_shape(network: nn.Module) -> tuple[int, int, int]:
    """Return (channels, height, width) of a network's images."""
    return int(network.channels), *get_sides(network.size)  # type: ignore[arg-type]


def count_classes(network: nn.Module) -> int:
    """Return the number of a network's classes; 0 where ``classes`` is ``None`` or missing: it is unconditional."""
    classes: int | None = getattr(network, "classes", None)
    return classes or 0


def check_forward(network: nn.Module, is_conditional: bool) -> None:
    """Check that a network can be called as the description of this module states.

    Raises:
        UserError: ``forward`` takes other arguments.
    """
    check_call(network, network.forward, "x_t, t")
    if is_conditional:
        check_call(network, network.forward, "x_t, t, label")


def name_classes(names: Sequence[str] | None, network: nn.Module) -> list[str]:
    """Return the names of a network's classes: those given, or ``None`` for their numbers.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    classes = count_classes(network)
    names = [str(label) for label in range(classes)] if names is None else list(names)
    if len(names) != classes:
        fix = "" if classes else "; a network with classes sets self.classes in its __init__"
        raise UserError(
            f"class_names has {len(names)} names and {describe_class(type(network))} has {classes} classes; give one "
            f"name for each class{fix}"
        )
    return names
