"""Which class each image of a set is to be of: a function of the set and the image's number alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import make_generator

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples lie in [0, 1) as evenly as any number's, whatever their count."""


def cycle_labels(labels: Sequence[int], start: int, stop: int) -> Tensor:
    """The classes in this order, again and again: images ``start``..``stop``, (stop - start,) int64."""
    return torch.tensor(labels)[torch.arange(start, stop) % len(labels)]


def spread_labels(counts: Tensor, seed: int, start: int, stop: int) -> Tensor:
    """Classes as often as they were counted, or all equally where nothing was.

    Image i has the class in whose share of [0, 1) the fractional part of u + i (sqrt(5) - 1)/2 lies, u being the
    seed's: any n images in a row have the proportions to within a few images.

    Args:
        counts: (classes,) how often each occurs.
        seed: of the set of images.
        start, stop: the images, as ``range(start, stop)``.

    Returns:
        (stop - start,) int64, on the CPU, whose random numbers are the same everywhere.
    """
    counts = counts.cpu()
    shares = counts.double() if counts.any() else torch.ones(len(counts), dtype=torch.float64)
    ends = (shares / shares.sum()).cumsum(0)[:-1]
    offset = torch.rand((), dtype=torch.float64, generator=make_generator("cpu", "label", seed))
    return torch.bucketize((offset + torch.arange(start, stop, dtype=torch.float64) * GOLDEN) % 1, ends, right=True)


def parse_labels(named: Sequence[str], names: Sequence[str], by_name: bool) -> list[int]:
    """The labels that somebody asks for.

    Args:
        named: classes, by name or by number.
        names: of all classes there are, in order.
        by_name: which of the two.

    Raises:
        UserError: there is no such class.
    """
    known = {name: label for label, name in enumerate(names)} if by_name else {str(i): i for i in range(len(names))}
    for each in named:
        if each not in known:
            there = ", ".join(f"{label} ({name})" for label, name in enumerate(names))
            raise UserError(f"there is no class {each!r}; there are {there}")
    return [known[each] for each in named]
