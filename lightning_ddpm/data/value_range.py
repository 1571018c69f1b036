"""What the values of images mean, and how they become the floats that a model is trained on, and are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.utils.errors import UserError

DTYPES = {
    "uint8": torch.uint8,
    "uint16": torch.int32,  # torch has few operations for uint16
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""The types of values in files, and the types of tensors that hold them."""
WIDE = ("int32", "float64")
"""Types of which float32 does not hold every value: they are scaled in float64, and rounded once."""


@dataclass(frozen=True)
class ValueRange:
    """The type and the range of the values of images: a model is trained on 2 (value - low) / (high - low) - 1.

    Args:
        dtype: type of the values, one of :data:`DTYPES`.
        low, high: the values that become -1 and 1, for all channels or for each of them.
        bounded: whether no value lies outside them. Predictions of x_0 are then clipped, and samples do not leave the
            range. Otherwise low and high are the mean of the values minus and plus their standard deviation, which so
            have mean 0 and standard deviation 1 for the model.
        masked: whether NaN stands for values that are missing: :mod:`lightning_ddpm.data.missing`. It stays NaN in
            :meth:`to_float`.

    Raises:
        UserError: there is no such type, or low is not below high.
    """

    dtype: str = "uint8"
    low: float | list[float] = 0.0
    high: float | list[float] = 255.0
    bounded: bool = True
    masked: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"values have one of the types {', '.join(DTYPES)}, got {self.dtype}")
        low, high = (np.atleast_1d(each) for each in (self.low, self.high))
        if (len(low) != len(high)) or not (np.isfinite(low) & np.isfinite(high)).all() or not (low < high).all():
            raise UserError(
                f"the values' low must lie below their high in every channel, got {self.low} and {self.high}; a "
                "channel with a single value cannot be learned: leave it out, or give the range"
            )

    @property
    def levels(self) -> int | None:
        """Number of equally spaced values from low to high; ``None`` for continuous values, and for unbounded ones."""
        if not self.bounded or self.dtype.startswith("float") or isinstance(self.low, list):
            return None
        return round(float(self.high) - self.low) + 1  # type: ignore[arg-type]

    @property
    def clip(self) -> float | None:
        """Half-width of the range of what a model is trained on; ``None`` without bounds."""
        return 1.0 if self.bounded else None

    def to_float(self, pixels: Tensor) -> Tensor:
        """Map values (b, c, h, w) to what a model is trained on, float32; :meth:`to_data` is the inverse.

        Raises:
            UserError: the values are of another type: their range is not known.
        """
        if pixels.dtype != DTYPES[self.dtype]:
            kind = str(pixels.dtype).removeprefix("torch.")
            raise UserError(
                f"images must be {self.dtype} with values {self.describe()}, got {kind}; convert them where they are "
                "opened"
            )
        x = self._widen(pixels)
        low, half = self._get_scale(x)
        return ((x - low) / half - 1).float().to(pixels.device)

    def to_data(self, x: Tensor) -> Tensor:
        """Map floats (b, c, h, w) to values: clamped if these are bounded, scaled, and rounded if they are integers."""
        x = self._widen(x)
        low, half = self._get_scale(x)
        values = ((x.clamp(-1, 1) if self.bounded else x) + 1) * half + low
        if self.dtype.startswith("float"):
            return values.to(DTYPES[self.dtype])
        limits = np.iinfo(self.dtype)
        return values.round().clamp(limits.min, limits.max).to(DTYPES[self.dtype])

    def _widen(self, x: Tensor) -> Tensor:
        """Return numbers as floats of which every step of the values is one; an MPS device has none of 64 bits."""
        if self.dtype not in WIDE:
            return x.float()
        return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)

    def _get_scale(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return low and half of the distance to high, of all channels or as (c, 1, 1)."""
        if not isinstance(self.low, list) and not isinstance(self.high, list):
            return self.low, (self.high - self.low) / 2
        low, high = (torch.tensor(each, dtype=torch.float64) for each in (self.low, self.high))
        return tuple(each.to(like)[:, None, None] for each in (low, (high - low) / 2))  # type: ignore[return-value]

    def check(self, values: np.ndarray) -> None:
        """Check the values of one image, (c, h, w).

        Raises:
            UserError: they are of another type, or not finite, or outside the range; the message names the value.
        """
        if values.dtype.name != self.dtype:
            raise UserError(f"its values are {values.dtype.name}, expected {self.dtype} as in the other images")
        check_finite(values, self.masked)
        if not self.bounded:
            return
        low, high = (np.reshape(each, (-1, 1, 1)) for each in (self.low, self.high))
        wrong = values[(values < low) | (values > high)]
        if wrong.size:
            raise UserError(f"it has the value {wrong[0]}, outside {self.describe()}; correct it, or give the range")

    def describe(self) -> str:
        """Return the range as in ``0..255``, or the mean and deviation of unbounded values."""
        if self.bounded:
            return f"{_format(self.low)}..{_format(self.high)}"
        low, high = np.asarray(self.low), np.asarray(self.high)
        return f"of mean {_format(((low + high) / 2).tolist())} and deviation {_format(((high - low) / 2).tolist())}"


UINT8 = ValueRange()
"""Images of 256 levels."""


def check_finite(values: np.ndarray, masked: bool = False) -> None:
    """Raise UserError for NaN and infinite values; with ``masked``, NaN is allowed unless there is nothing else."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    wrong = values[np.isinf(values) if masked else ~np.isfinite(values)]
    if wrong.size:
        raise UserError(f"it has the value {wrong[0]}; fill in what is missing, or leave the image out")
    if np.isnan(values).all():
        raise UserError("all of its values are NaN; leave the image out")


def to_tensor(values: np.ndarray) -> Tensor:
    """Return an array of one of :data:`DTYPES` in the machine's byte order as a tensor of values."""
    return wrap_array(np.array(values, values.dtype.newbyteorder("="), order="C"))


def wrap_array(values: np.ndarray) -> Tensor:
    """Return a contiguous array of one of :data:`DTYPES` as a tensor of values, which shares its memory if it can."""
    return torch.from_numpy(values if values.dtype != np.uint16 else values.astype(np.int32))


def to_array(pixels: Tensor, values: ValueRange) -> np.ndarray:
    """Return a tensor of values as an array of their type; the inverse of :func:`to_tensor`."""
    return pixels.cpu().numpy().astype(values.dtype)


def _format(number: float | Sequence[float]) -> str:
    if isinstance(number, list | tuple):
        return f"[{', '.join(f'{each:g}' for each in number)}]"
    return f"{number:g}"
