"""Choose the class of each image to generate, as a function of the seed and the image's index alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import make_generator

GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples fill [0, 1) as evenly as possible, however many are taken."""
LISTED = 24
"""Largest number of classes that a message lists."""


def cycle_labels(labels: Sequence[int], start: int, stop: int) -> Tensor:
    """Return the labels of images ``start``..``stop``, (stop - start,) int64: ``labels`` in order, repeated."""
    return torch.tensor(labels)[torch.arange(start, stop) % len(labels)]


def spread_labels(counts: Tensor, seed: int, start: int, stop: int) -> Tensor:
    """Return labels in the proportions of ``counts``, or in equal proportions if all counts are 0.

    [0, 1) is divided into one interval for each class, as long as its proportion. Image i has the class whose interval
    holds the fractional part of u + i (sqrt(5) - 1)/2, where u ~ U(0, 1) depends on the seed. Any n consecutive images
    have the proportions to within a few images.

    Args:
        counts: (classes,) number of occurrences of each class.
        seed: seed of the generated images.
        start, stop: the images, as ``range(start, stop)``.

    Returns:
        (stop - start,) int64. They are computed on the CPU, whose random numbers do not depend on the device.
    """
    shares = counts.cpu().double() if counts.any() else torch.ones(len(counts), dtype=torch.float64)
    ends = (shares / shares.sum()).cumsum(0)[:-1]
    offset = torch.rand((), dtype=torch.float64, generator=make_generator("cpu", "label", seed))
    return torch.bucketize((offset + torch.arange(start, stop, dtype=torch.float64) * GOLDEN) % 1, ends, right=True)


def parse_labels(given: str, names: Sequence[str], by_name: bool) -> list[int]:
    """Convert class names or numbers to labels.

    A name may hold commas and spaces: of the names that the text could mean next, the longest is taken.

    Args:
        given: the classes to convert, separated by commas.
        names: the names of all classes, in the order of their labels.
        by_name: whether ``given`` holds names; otherwise it holds numbers.

    Raises:
        UserError: there is no such class.
    """
    known = {name: label for label, name in enumerate(names)} if by_name else {str(i): i for i in range(len(names))}
    most = max(map(len, (name.split(",") for name in known)), default=1)
    labels, parts = list[int](), given.split(",")
    while parts:
        texts = [",".join(parts[:count]) for count in range(min(most, len(parts)), 0, -1)]
        named = next((each for text in texts for each in (text, text.strip()) if each in known), None)
        if named is None:
            raise UserError(_describe_unknown(parts[0].strip(), names, by_name))
        labels.append(known[named])
        parts = parts[named.count(",") + 1 :]
    return labels


def _describe_unknown(given: str, names: Sequence[str], by_name: bool) -> str:
    """Return the message for a class that does not exist."""
    fix = ""
    if by_name and given.isdecimal() and int(given) < len(names):
        fix = f"; --labels takes its number, --labels {int(given)} for {names[int(given)]}"
    elif not by_name and given in names:
        fix = f"; --class_names takes its name, --class_names {given}"
    listed = ", ".join(f"{label} ({name})" for label, name in enumerate(names[:LISTED]))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    what = f"class named {given!r}" if by_name else f"class {given!r}, counted from 0"
    return f"there is no {what}{fix}; there are {listed}{more}"
