"""Pixels without a value, NaN in the data: training leaves them out of the loss, and samples have them, too."""

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.errors import UserError

Missing = Literal["refuse", "mask"]
"""What a source does about NaN: refuse to start, or mask these pixels."""
BATCH = 64
"""Number of images that :func:`find_valid` reads at a time."""

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Number, mean and variance of the values of each channel of an image that are not NaN, (c,) float64."""


def split_missing(x_0: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (b, c, h, w) with 0 for NaN, and a mask of their shape, true for the values that are there.

    0 is the mean of unbounded values and the middle of a range.
    """
    valid = ~x_0.isnan()
    return torch.where(valid, x_0, 0.0), valid


def find_valid(data: ImageDataset) -> Tensor:
    """Return which values (c, h, w) bool some image of a dataset has; the others are NaN in all images.

    Images are read until every value was seen. What is found is kept in the cache until a file changes.
    """
    path = find_cached(f"valid/{data.fingerprint}.json")
    valid = torch.zeros_like(data[0][0], dtype=torch.bool)
    if (cached := read_cached(path)) is not None:
        missing = torch.tensor(json.loads(cached), dtype=torch.long)
        return ~valid.flatten().index_fill(0, missing, True).reshape(valid.shape)
    for start in range(0, len(data), BATCH):
        pixels = data.__getitems__(range(start, min(start + BATCH, len(data))))[0]
        valid |= ~pixels.isnan().all(0)
        if valid.all():
            break
    write_cached(path, json.dumps((~valid).flatten().nonzero().flatten().tolist()).encode())
    return valid


def measure_valid(image: np.ndarray) -> Moments:
    """Return the moments of an image (c, h, w) over the values that are there."""
    exact = image.astype(np.float64)
    valid = ~np.isnan(exact)
    n = valid.sum((1, 2))
    mean = np.where(valid, exact, 0).sum((1, 2)) / np.maximum(n, 1)
    errors = np.where(valid, exact - mean[:, None, None], 0)
    return n, mean, np.square(errors).sum((1, 2)) / np.maximum(n, 1)


def pool_valid(measured: Sequence[Moments], what: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over all values that are there; ``what`` names the dataset.

    Raises:
        UserError: a channel has none.
    """
    n, means, variances = (np.stack(each) for each in zip(*measured, strict=True))
    total = n.sum(0)
    if not total.all():
        channel = int(np.flatnonzero(total == 0)[0])
        raise UserError(f"channel {channel} (counted from 0) is NaN in all training images of {what}; leave it out")
    mean = (n * means).sum(0) / total
    variance = (n * (variances + np.square(means - mean))).sum(0) / total  # the law of total variance
    return mean.tolist(), np.sqrt(variance).tolist()


def check_masked(values: ValueRange, model: object) -> None:
    """Check that a model takes images in which values are missing, if those of the data are.

    Args:
        values: of the data.
        model: what is trained or evaluated on them; its attribute ``values`` states what it takes.

    Raises:
        UserError: it does not.
    """
    if values.masked and not getattr(getattr(model, "values", None), "masked", False):
        raise UserError(
            f"the data have NaN for pixels without a value, and {type(model).__name__} is not trained on such; set "
            "data.source.nan to refuse, or its values to the data's"
        )


def require_complete(values: ValueRange, what: str) -> None:
    """Refuse images in which values are missing; ``what`` names in the error what needs all of them.

    Raises:
        UserError: they are masked.
    """
    if values.masked:
        raise UserError(
            f"{what} needs images with a value in every pixel, and these have NaN (data.source.nan: mask); leave it "
            "out, and look at val/loss, sample grids and samples"
        )
