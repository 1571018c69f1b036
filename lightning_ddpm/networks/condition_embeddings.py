"""Embeddings of a class, several classes, numbers and images as conditions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.networks.conditions import AddedCondition, ConcatenatedCondition
from lightning_ddpm.utils.condition import Condition, ConditionFormat
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import ImageSize, get_sides, shorten_size


class LabelEmbedding(AddedCondition):
    """A vector for each class and, as the last, one for no class.

    So every image has a vector, and every training step computes a gradient for this layer, whatever the labels.

    Args:
        classes: number of classes.
        dim: length of the vectors.

    Raises:
        UserError: the number of classes is ``None``, which stands for that of data that have none.
    """

    kind = "label"

    def __init__(self, classes: int | None, dim: int) -> None:
        super().__init__()
        if classes is None:
            raise UserError("the images have no classes; label them, or set model.network.classes to 0")
        self.classes = classes
        self.build(dim)

    def build(self, dim: int) -> None:
        self.vectors = nn.Embedding(self.classes + 1, dim)

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        """Map labels (b,) int64, -1 for no class, to (b, dim); without labels there is no class."""
        label = torch.full_like(t, -1, dtype=torch.long) if condition.label is None else condition.label
        return self.vectors(torch.where(label < 0, self.classes, label))  # type: ignore[no-any-return]


def _mark_given(condition: Condition, values: Tensor | None, t: Tensor, weight: Tensor) -> Tensor:
    """Return values (b, k) and, as the last of (b, k + 1), whether they are given, for a layer of this weight."""
    if values is None:  # hidden values are 0
        return weight.new_zeros(len(t), weight.shape[1])
    given = weight.new_ones(len(t)) if condition.given is None else condition.given.to(weight.dtype)
    return torch.cat([values.to(weight.dtype) * given[:, None], given[:, None]], dim=1)


class MultiLabelEmbedding(AddedCondition):
    """The sum of a vector for each class that an image has; a vector more stands for a condition that is given.

    Args:
        names: names of the classes, of which an image may have several; on the command line ``null`` for the data's.
    """

    kind = "multilabel"

    def __init__(self, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.names = _check_names(names, type(self).__name__)

    @classmethod
    def get_data_arguments(cls, given: ConditionFormat) -> Mapping[str, Any]:
        if not given.multilabel:
            raise UserError(f"{cls.__name__} needs images with several classes each, and the data have none")
        return {"names": list(given.multilabel)}

    @property
    def format(self) -> ConditionFormat:
        return ConditionFormat(multilabel=tuple(self.names))

    def build(self, dim: int) -> None:
        self.vectors = nn.Linear(len(self.names) + 1, dim, bias=False)
        nn.init.normal_(self.vectors.weight, std=0.5)

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        return self.vectors(_mark_given(condition, condition.multilabel, t, self.vectors.weight))  # type: ignore[no-any-return]


class VectorEmbedding(AddedCondition):
    """Two linear layers of a vector of numbers, each less its mean over the training set and divided by its deviation.

    Args:
        names: names of the numbers; on the command line ``null`` for the data's.
        hidden: width of the layer between the two; ``null`` for that of the network's embedding.
    """

    kind = "vector"
    mean: Tensor
    std: Tensor

    def __init__(self, names: Sequence[str] | None = None, hidden: int | None = None) -> None:
        super().__init__()
        self.names, self.hidden = _check_names(names, type(self).__name__), hidden
        if hidden is not None and hidden < 1:
            raise UserError(f"hidden must be at least 1, got {hidden}")

    @classmethod
    def get_data_arguments(cls, given: ConditionFormat) -> Mapping[str, Any]:
        if not given.vector:
            raise UserError(f"{cls.__name__} needs a vector of numbers for each image, and the data have none")
        return {"names": list(given.vector)}

    @property
    def format(self) -> ConditionFormat:
        return ConditionFormat(vector=tuple(self.names))

    def build(self, dim: int) -> None:
        k, hidden = len(self.names), self.hidden or dim
        self.first, self.last = nn.Linear(k + 1, hidden), nn.Linear(hidden, dim)
        self.register_buffer("mean", torch.zeros(k))
        self.register_buffer("std", torch.ones(k))

    def measure(self, values: Tensor) -> None:
        """Set mean and standard deviation to those of the training images, (n, k).

        Raises:
            UserError: a number is the same for all images.
        """
        exact = values.double()
        mean, std = exact.mean(0), exact.std(0, correction=0)
        if flat := [name for name, each in zip(self.names, std.tolist(), strict=True) if not each]:
            raise UserError(
                f"the condition {flat[0]} is {float(values[0, self.names.index(flat[0])]):g} for all training images, "
                "so that nothing can be learned from it; leave it out"
            )
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, condition: Condition, t: Tensor) -> Tensor:
        values = None if condition.vector is None else (condition.vector - self.mean) / self.std
        return self.last(functional.silu(self.first(_mark_given(condition, values, t, self.first.weight))))  # type: ignore[no-any-return]


class ConcatenatedImage(ConcatenatedCondition):
    """Concatenates an image to the channels of x_t; Saharia et al. 2021 (SR3, arXiv:2104.07636), 2022 (Palette).

    One of another size is resized by bicubic interpolation first, with antialiasing if a side shrinks. One more channel
    is 1 where the image is given and 0 where it is hidden.

    Args:
        channels, size: of the image; on the command line ``null`` for the data's.
    """

    kind = "image"

    def __init__(self, channels: int | None = None, size: ImageSize | None = None) -> None:
        super().__init__()
        if not channels or not size:
            raise UserError(f"ConcatenatedImage needs channels and size of the condition, got {channels} and {size}")
        self.image_shape = channels, *get_sides(size)
        self.channels = channels + 1

    @classmethod
    def get_data_arguments(cls, given: ConditionFormat) -> Mapping[str, Any]:
        if not given.image:
            raise UserError(f"{cls.__name__} needs an image that each image is conditioned on, and the data have none")
        channels, *sides = given.image
        return {"channels": channels, "size": shorten_size(sides)}

    @property
    def format(self) -> ConditionFormat:
        return ConditionFormat(image=self.image_shape)

    def build(self, dim: int) -> None:
        """Do nothing: the network's first layer has weights for the channels."""

    def forward(self, condition: Condition, x_t: Tensor) -> Tensor:
        """Return x_t (b, c, h, w) with the channels of the condition."""
        image = condition.image
        if image is None:
            return torch.cat([x_t, x_t.new_zeros(len(x_t), self.channels, *x_t.shape[2:])], dim=1)
        image = resize_to(image.to(x_t.dtype), x_t.shape[2:])
        given = image.new_ones(len(image)) if condition.given is None else condition.given.to(image.dtype)
        given = given[:, None, None, None]
        return torch.cat([x_t, image * given, given.expand(-1, 1, *x_t.shape[2:])], dim=1)


class ConcatenatedMask(ConcatenatedCondition):
    """Concatenates to x_t which of its values the data have, as a channel of 0 and 1 for each; the others are set to 0.

    So what is predicted where there are values does not depend on the noise where there are none. It is for data whose
    source masks NaN. Training images have masks of their own. Generated images have all values that any training image
    has. The mask is never hidden.

    Attributes:
        valid: (c, h, w) bool, the values that some training image has.
    """

    kind = "mask"
    comes_from_data = False
    valid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.size = 0, (0, 0)

    def fit_images(self, channels: int, size: ImageSize) -> None:
        """Take a channel for each of the images'."""
        self.channels, self.size = channels, get_sides(size)

    def build(self, dim: int) -> None:
        """Begin with masks of ones; the network's first layer has weights for the channels.

        Raises:
            UserError: the network has not given the shape of its images to ``Conditions``.
        """
        if not self.channels:
            raise UserError(
                "ConcatenatedMask needs the shape of the images; a network gives it by Conditions(conditions, channels,"
                " size)"
            )
        self.register_buffer("valid", torch.ones(self.channels, *self.size, dtype=torch.bool))

    def measure(self, values: Tensor) -> None:
        """Set the values that generated images have, (c, h, w) bool."""
        self.valid.copy_(values)

    def forward(self, condition: Condition, x_t: Tensor) -> Tensor:
        """Return x_t (b, c, h, w), 0 where values are missing, with the channels of the mask."""
        mask = self.valid.expand(len(x_t), -1, -1, -1) if condition.mask is None else condition.mask
        mask = mask.to(x_t.dtype)
        image, others = x_t[:, : self.channels], x_t[:, self.channels :]  # which another condition has concatenated
        return torch.cat([image * mask, others, mask], dim=1)


def resize_to(image: Tensor, sides: Sequence[int]) -> Tensor:
    """Resize images (b, c, h, w) to height and width by bicubic interpolation, antialiased if a side shrinks."""
    old, new = tuple(image.shape[2:]), tuple(sides)
    if old == new:
        return image
    if new[0] >= old[0] and new[1] >= old[1]:
        return functional.interpolate(image, new, mode="bicubic")
    return functional.interpolate(image.float(), new, mode="bicubic", antialias=True).to(image.dtype)


def _check_names(names: Sequence[str] | None, what: str) -> list[str]:
    if not names:
        raise UserError(f"{what} needs names, got {names}; on the command line null takes those of the data")
    return list(names)
