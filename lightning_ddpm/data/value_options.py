"""The range of values that a source's options give, or that is measured over its images."""

from collections.abc import Sequence

import numpy as np

from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.utils.errors import UserError

FULL_RANGE = ("uint8", "uint16", "int8", "int16")
"""Types whose whole range is the values' unless another one is given."""
Numbers = float | list[float]
"""A number for all channels, or one for each."""


def choose_values(
    dtype: str,
    channels: int,
    low: Numbers | None,
    high: Numbers | None,
    mean: Numbers | None,
    std: Numbers | None,
    masked: bool = False,
) -> ValueRange | None:
    """Return the range that is given for values of a type, or that the type implies; ``None`` if it is to be measured.

    Raises:
        UserError: a part of a range is missing, or two ranges are given; or NaN is to be masked, and the type has
            none.
    """
    if masked and not dtype.startswith("float"):
        raise UserError(
            f"data.source.nan is mask, and values of {dtype} have no NaN; remove it, or save images of floats with "
            "NaN where they have no value"
        )
    numbers = {"low": low, "high": high, "mean": mean, "std": std}
    given = {name: each for name, each in numbers.items() if each is not None}
    for name, each in given.items():
        if isinstance(each, list) and len(each) != channels:
            raise UserError(f"data.source.{name} has {len(each)} numbers and the images have {channels} channels")
    if not given:
        if dtype not in FULL_RANGE:
            return None
        limits = np.iinfo(dtype)
        return ValueRange(dtype, float(limits.min), float(limits.max))
    if low is not None and high is not None and len(given) == 2:
        _check_alike("low", low, "high", high)
        return ValueRange(dtype, low, high, masked=masked)
    if mean is None or std is None or len(given) != 2:
        raise UserError(f"give low and high, or mean and std, or none of them; got {', '.join(given)}")
    return make_unbounded(dtype, mean, std, masked)


def make_unbounded(dtype: str, mean: Numbers, std: Numbers, masked: bool = False) -> ValueRange:
    """Return the range of unbounded values with this mean and standard deviation, of which some may be missing.

    Raises:
        UserError: one of them is a number and the other a list, or a standard deviation is not above 0.
    """
    _check_alike("mean", mean, "std", std)
    if not (np.asarray(std) > 0).all():
        raise UserError(f"std must be above 0 in every channel, got {std}")
    if not isinstance(mean, list) and not isinstance(std, list):
        return ValueRange(dtype, mean - std, mean + std, bounded=False, masked=masked)
    assert isinstance(mean, list)
    assert isinstance(std, list)
    pairs = list(zip(mean, std, strict=True))
    low, high = [m - s for m, s in pairs], [m + s for m, s in pairs]
    return ValueRange(dtype, low, high, bounded=False, masked=masked)


def _check_alike(name: str, first: Numbers, other_name: str, other: Numbers) -> None:
    """Raise a UserError unless both are numbers, or lists of equal length."""
    lengths = [len(each) if isinstance(each, list) else None for each in (first, other)]
    if lengths[0] != lengths[1]:
        raise UserError(
            f"{name} and {other_name} must both be numbers or lists of one number a channel, got {first} and {other}"
        )


Moments = tuple[np.ndarray, np.ndarray]
"""Mean and variance of each channel of an image, (c,) float64."""


def measure_channels(image: np.ndarray) -> Moments:
    """Return the moments of an image (c, h, w)."""
    exact = image.astype(np.float64)
    return exact.mean((1, 2)), exact.var((1, 2))


def pool_channels(measured: Sequence[Moments]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over images of one size, from their moments."""
    means, variances = (np.stack(each) for each in zip(*measured, strict=True))
    std = np.sqrt(variances.mean(0) + means.var(0))  # the law of total variance
    return means.mean(0).tolist(), std.tolist()


def standardise(dtype: str, mean: list[float], std: list[float], what: str, masked: bool = False) -> ValueRange:
    """Return the range of values with this measured mean and standard deviation of each channel; see ``ValueRange``.

    Raises:
        UserError: all values of a channel of the dataset, which ``what`` names, are equal.
    """
    if flat := [channel for channel, each in enumerate(std) if each == 0]:
        raise UserError(
            f"all values of channel {flat[0]} (counted from 0) in {what} are {mean[flat[0]]:g}, so that their standard "
            "deviation is 0; leave the channel out, or give data.source.low and high"
        )
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    return ValueRange(dtype, low, high, bounded=False, masked=masked)
