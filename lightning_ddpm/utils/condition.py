"""What images are conditioned on: one structure from the dataset to the network, whatever the kinds are."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """What each image of a batch is conditioned on; a kind that is ``None`` is not there.

    Kinds are hidden together: the prediction without a condition, of classifier-free guidance, is that of
    :meth:`hide`. Datasets return :class:`Condition`, or a tensor of labels alone (:func:`as_condition`).

    Attributes:
        label: (b,) int64, the class of each image; -1 for none.
        multilabel: (b, k), 1 for each of k classes that an image belongs to, else 0.
        vector: (b, k) float32, numbers in the data's units.
        image: (b, c, h, w); as in the files in datasets, and floats in [-1, 1] for networks.
        augmentation: (b, k) float32, what was done to training images; 0 for images as they are. It is never hidden.
        given: (b,) bool, whether an image's condition is there; ``None`` if it is for all. Labels are hidden by -1.
        mask: (b, c, h, w) bool, the values of training images that are not missing. It is never hidden.
    """

    label: Tensor | None = None
    multilabel: Tensor | None = None
    vector: Tensor | None = None
    image: Tensor | None = None
    augmentation: Tensor | None = None
    given: Tensor | None = None
    mask: Tensor | None = None

    @property
    def kinds(self) -> set[str]:
        """Names of the kinds that are there."""
        return {name for name, each in self._asdict().items() if each is not None and name != "given"}

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """Return the condition with the function applied to every tensor."""
        return Condition(*(None if each is None else function(each) for each in self))

    def to(self, device: torch.device | str) -> "Condition":
        """Return the condition on a device."""
        return self.map(lambda each: each.to(device))

    def keep(self, kinds: Collection[str]) -> "Condition":
        """Return the condition with these kinds alone."""
        return self._replace(**dict.fromkeys(self.kinds.difference(kinds)))

    def hide(self, where: Tensor | None = None) -> "Condition":
        """Return the condition hidden from the images ``where`` (b,) is true; ``None`` for all of them."""
        label = self.label
        if label is not None:
            label = torch.full_like(label, -1) if where is None else torch.where(where, -1, label)
        others = [each for name, each in self._asdict().items() if name not in ("label", "given") and each is not None]
        if not others:
            return self._replace(label=label)
        hidden = torch.ones(len(others[0]), dtype=torch.bool, device=others[0].device) if where is None else where
        return self._replace(label=label, given=~hidden if self.given is None else self.given & ~hidden)

    def join(self, other: "Condition") -> "Condition":
        """Return the condition of both batches of images, one after the other; they have the same kinds."""
        first, second = self, other
        if (first.given is None) != (second.given is None):
            first, second = (each.hide(_no_image(each)) if each.given is None else each for each in (first, second))
        pairs = zip(first, second, strict=True)
        return Condition(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))

    @property
    def argument(self) -> "Condition | Tensor | None":
        """What networks are called with: the labels if there is nothing else, as networks with classes take them."""
        return self.label if self.kinds <= {"label"} else self


def _no_image(condition: Condition) -> Tensor:
    first = next(each for each in condition if each is not None)
    return torch.zeros(len(first), dtype=torch.bool, device=first.device)


def as_condition(given: "Condition | Tensor | None") -> Condition:
    """Return a condition; of a tensor, the one with these labels (b,) int64, and of ``None`` the one without kinds."""
    return given if isinstance(given, Condition) else Condition(given)


@dataclass(frozen=True)
class ConditionFormat:
    """The kinds of condition that a dataset has besides classes, and that a network takes.

    Attributes:
        vector: names of the numbers; empty without them.
        multilabel: names of the classes of which an image may have several; empty without them.
        image: (channels, height, width) of the images that the images are conditioned on; ``None`` without them.
    """

    vector: tuple[str, ...] = ()
    multilabel: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the kinds, those of :class:`Condition`."""
        return frozenset(name for name in ("vector", "multilabel", "image") if getattr(self, name))

    def describe(self) -> str:
        """Return the kinds in words, as in ``the vector (a, b)``; ``nothing`` without any."""
        parts = []
        if self.vector:
            parts.append(f"the vector ({', '.join(self.vector)})")
        if self.multilabel:
            parts.append(f"several of the classes ({', '.join(self.multilabel)})")
        if self.image:
            parts.append(f"an image of {'x'.join(map(str, self.image))}")
        return " and ".join(parts) or "nothing"


NOTHING = ConditionFormat()
"""Images that are conditioned on their class at most."""
