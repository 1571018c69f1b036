"""A dataset of images with what each of them is conditioned on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_ddpm.data.datasets import Batch, ImageDataset
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.utils.condition import Condition, ConditionFormat
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import make_cache_key
from lightning_ddpm.utils.random import make_generator


class ConditionedDataset(ImageDataset):
    """Images of another dataset, each with a vector, several classes or an image that it is conditioned on.

    Args:
        images: the images, and their labels.
        vector: (n, k) numbers of each image, float32.
        multilabel: (n, k), 1 for each class that an image has, else 0.
        pairs: a dataset of as many images, those that the images are conditioned on, in the same order; or
        derive: maps images (b, c, h, w) to them.

    Raises:
        UserError: the numbers of rows differ, or a number is not finite.
    """

    def __init__(
        self,
        images: ImageDataset,
        vector: Tensor | None = None,
        multilabel: Tensor | None = None,
        pairs: ImageDataset | None = None,
        derive: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images, self.pairs, self.derive = images, pairs, derive
        self.labels, self.fingerprint = images.labels, images.fingerprint
        self.blocks = images.blocks
        self.vector = None if vector is None else vector.float()
        self.multilabel = None if multilabel is None else multilabel.to(torch.uint8)
        tables = {"vector": self.vector, "multilabel": self.multilabel}
        for name, rows in {**tables, "pairs": pairs}.items():
            if rows is not None and len(rows) != len(images):
                raise UserError(f"there are {len(images)} images and {len(rows)} rows of {name}; give one for each")
        for name, given in (("vector", vector), ("multilabel", multilabel)):
            if given is not None and (given.ndim != 2 or not given.shape[1]):
                raise UserError(f"{name} must be (n, k), got {tuple(given.shape)}")
        if self.vector is not None and not self.vector.isfinite().all():
            row, column = (~self.vector.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"the condition of image {row} has the number {float(self.vector[row, column])} in column {column}; "
                "fill in what is missing, or leave the image out"
            )
        if multilabel is not None and not ((multilabel == 0) | (multilabel == 1)).all():
            raise UserError(
                "multilabel holds 1 for each class that an image has and 0 for the others, got other numbers"
            )
        content = b"".join(each.numpy().tobytes() for each in tables.values() if each is not None)
        derived = getattr(derive, "__qualname__", str(derive or ""))  # str of a function has its place in memory
        self.condition_state = make_cache_key(content) + (pairs.fingerprint if pairs else derived)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        pixels = self.images.__getitems__(indices)[0]
        return pixels, self._read(indices, pixels if self.derive else None)

    def read_conditions(self, indices: Sequence[int]) -> Condition:
        """Return the conditions at these indices; images that are not needed for them are not read."""
        return self._read(indices, self.images.__getitems__(indices)[0] if self.derive else None)

    def _read(self, indices: Sequence[int], pixels: Tensor | None) -> Condition:
        chosen = torch.as_tensor(indices)
        image = self.pairs.__getitems__(indices)[0] if self.pairs else None
        if self.derive:
            assert pixels is not None
            image = self.derive(pixels)
        vector, multilabel = (None if each is None else each[chosen] for each in (self.vector, self.multilabel))
        return Condition(self.labels[chosen], multilabel, vector, image)

    def map_images(self, function: Callable[[ImageDataset], ImageDataset]) -> "ConditionedDataset":
        """Return the dataset with both datasets of images replaced, as by decoded ones."""
        pairs = function(self.pairs) if self.pairs else None
        return ConditionedDataset(function(self.images), self.vector, self.multilabel, pairs, self.derive)


def check_conditions(data: ImageDataset, declared: ConditionFormat, name: str) -> None:
    """Check that a dataset has the conditions that its source declares.

    Args:
        data: the dataset, not empty.
        declared: by the source.
        name: name of the source.

    Raises:
        UserError: it has not.
    """
    if not isinstance(data, ConditionedDataset):
        if declared.kinds:
            raise UserError(
                f"{name} declares {declared.describe()} and opens a {type(data).__name__}; return a ConditionedDataset"
            )
        return
    found = data.read_conditions([0])
    if (kinds := found.kinds - {"label"}) != declared.kinds:
        opened = ", ".join(sorted(kinds))
        raise UserError(
            f"{name} declares {declared.describe()} as condition and opens {opened}; set its attribute condition"
        )
    for kind in ("vector", "multilabel"):
        row, names = getattr(found, kind), getattr(declared, kind)
        if row is not None and row.shape[1] != len(names):
            raise UserError(f"{name} declares the {kind} ({', '.join(names)}) and has rows of {row.shape[1]} numbers")
    if found.image is not None and tuple(found.image.shape[1:]) != declared.image:
        opened, expected = ("x".join(map(str, each)) for each in (found.image.shape[1:], declared.image or ()))
        raise UserError(f"{name} declares images of {expected} as condition and has {opened}; correct it")


def convert_image(condition: Condition, values: ValueRange) -> Condition:
    """Return a dataset's condition with its image as networks take it, floats in [-1, 1]."""
    return condition if condition.image is None else condition._replace(image=values.to_float(condition.image))


class ShuffledConditions:
    """The conditions of a dataset's images in an order that is fixed, repeated: those of generated images.

    Args:
        data: the dataset.
    """

    def __init__(self, data: ConditionedDataset) -> None:
        self._data = data
        self._order = torch.randperm(len(data), generator=make_generator("cpu", "conditions"))

    def __len__(self) -> int:
        return len(self._data)

    def __call__(self, start: int, stop: int) -> Condition:
        """Return the conditions of generated images ``start``..``stop``."""
        return self._data.read_conditions(self._order[torch.arange(start, stop) % len(self._data)].tolist())


def shuffle_conditions(*parts: ImageDataset) -> ShuffledConditions | None:
    """Return the conditions of the first part that has some, for images that are generated."""
    found = (each for each in parts if isinstance(each, ConditionedDataset) and len(each))
    return next((ShuffledConditions(each) for each in found), None)
