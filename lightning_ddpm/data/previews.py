"""Images of any values and number of channels as images to look at."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_ddpm.data.image_io import LEAST_SIDE, arrange_grid
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.utils.errors import UserError

SHOWN_DEVIATIONS = 3.0
"""Standard deviations from the mean of unbounded values to black and to white."""
MAX_PIXELS = 89_478_485
"""Largest number of pixels in a grid: Pillow's limit, above which viewers that are built on it do not open a PNG."""
BAR_WIDTH, BAR_HEIGHT, GAP = 256, 16, 6  # of the bars of a color map: a pixel for each of its colors


class Preview(ABC):
    """Shows each image as a grayscale or RGB image."""

    @abstractmethod
    def list_channels(self, channels: int) -> list[int]:
        """Return the channels that are shown, of images with this many; the first one is 0."""

    @abstractmethod
    def show(self, values: ValueRange, pixels: Tensor) -> Tensor:
        """Return values (n, c, h, w) as (n, 1 or 3, h, w') uint8."""

    @abstractmethod
    def render_legend(self, values: ValueRange, channels: int) -> Tensor | None:
        """Return what the colors of images with this many channels mean, (3, H, W) uint8; ``None`` for nothing."""

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Check that a grid of n images (c, h, w) can be made.

        Raises:
            UserError: a channel is shown that the images do not have, or the grid would be too large to be opened.
        """
        shown = self.list_channels(shape[0])
        if wrong := [each for each in shown if not 0 <= each < shape[0]]:
            raise UserError(
                f"{self} shows channel {wrong[0]}, and the images have the channels 0..{shape[0] - 1}; choose of these"
            )
        if (pixels := n * len(shown) * shape[1] * shape[2]) > MAX_PIXELS:
            raise UserError(
                f"a grid of {n} images with {len(shown)} channels of {shape[1]}x{shape[2]} has {pixels:,} pixels, more "
                f"than the {MAX_PIXELS:,} that viewers open; show fewer images, or choose channels: Channels([0])"
            )

    def arrange(
        self, values: ValueRange, pixels: Tensor, columns: int | None = None, titles: Sequence[str] | None = None
    ) -> Tensor:
        """Return images (n, c, h, w) of these values in a grid (3, H, W) uint8, with the legend below it."""
        shown, scale = self.show(values, pixels).cpu(), max(1, LEAST_SIDE // max(pixels.shape[2:]))
        strips = shown.shape[3] // pixels.shape[3]
        enlarged = shown.repeat_interleave(scale, 3).repeat_interleave(scale, 2)
        grid = arrange_grid(enlarged, columns or max(1, round((len(pixels) / strips) ** 0.5)), titles)
        legend = self.render_legend(values, pixels.shape[1])
        if legend is None:
            return grid
        width = max(grid.shape[2], legend.shape[2])
        padded = [torch.nn.functional.pad(each, (0, width - each.shape[2]), value=255) for each in (grid, legend)]
        return torch.cat(padded, dim=1)


@final
class Gray(Preview):
    """Shows one channel in gray and three as RGB; of any other number each in gray, side by side from left to right.

    Black is the low end of the values and white the high one; without bounds they are 3 standard deviations below and
    above the mean. Values that are missing are black.
    """

    def list_channels(self, channels: int) -> list[int]:
        return list(range(channels))

    def show(self, values: ValueRange, pixels: Tensor) -> Tensor:
        shown = _scale(values, pixels)
        return shown if shown.shape[1] in (1, 3) else _put_side_by_side(shown)

    def render_legend(self, values: ValueRange, channels: int) -> None:
        return None

    def __str__(self) -> str:
        return "Gray"


@final
class Channels(Preview):
    """Shows some of the channels as :class:`Gray` shows images that have these alone.

    Args:
        channels: their numbers, from 0; three are red, green and blue, such as [3, 2, 1].
    """

    def __init__(self, channels: list[int]) -> None:
        if not channels:
            raise UserError("a preview shows at least one channel, got none")
        self.channels = channels

    def list_channels(self, channels: int) -> list[int]:
        return self.channels

    def show(self, values: ValueRange, pixels: Tensor) -> Tensor:
        shown = _scale(values, pixels)[:, self.channels]
        return shown if shown.shape[1] in (1, 3) else _put_side_by_side(shown)

    def render_legend(self, values: ValueRange, channels: int) -> None:
        return None

    def __str__(self) -> str:
        return f"Channels({self.channels})"


@final
class ColorMap(Preview):
    """Shows each channel in the colors of a map, side by side, with a bar of the colors and their values below.

    A bar ends at the low and the high value of its channel; without bounds, 3 standard deviations from the mean. Values
    that are missing are white.

    Args:
        name: one of matplotlib's color maps, such as viridis, magma or RdBu_r.
        channels: numbers of the channels to show, from 0; ``null`` for all.
    """

    def __init__(self, name: str = "viridis", channels: list[int] | None = None) -> None:
        from matplotlib import colormaps  # slow to import

        if name not in colormaps:
            raise UserError(f"matplotlib has no color map {name!r}; it has viridis, magma, cividis, RdBu_r and others")
        if channels == []:
            raise UserError("a preview shows at least one channel, got none; leave channels out for all")
        self.name, self.channels = name, channels
        levels = colormaps[name](np.arange(256) / 255)[:, :3]
        self.colors = torch.from_numpy((levels * 255).round().astype(np.uint8))

    def list_channels(self, channels: int) -> list[int]:
        return list(range(channels)) if self.channels is None else self.channels

    def show(self, values: ValueRange, pixels: Tensor) -> Tensor:
        chosen = self.list_channels(pixels.shape[1])
        levels = _put_side_by_side(_scale(values, pixels)[:, chosen])
        colors = self.colors[levels[:, 0].cpu().long()].permute(0, 3, 1, 2)
        if not values.masked:
            return colors
        missing = _put_side_by_side(pixels.isnan()[:, chosen]).cpu()
        return torch.where(missing, 255, colors)

    def render_legend(self, values: ValueRange, channels: int) -> Tensor:
        ends = {f"channel {each}": _get_ends(values, each) for each in self.list_channels(channels)}
        if len(ends) > 1 and len(set(ends.values())) == 1:
            ends = {"all channels": next(iter(ends.values()))}
        bars = [(name, f"{low:.4g}", f"{high:.4g}") for name, (low, high) in ends.items()]
        legend: Tensor = pil_to_tensor(self._render_bars(bars))
        return legend

    def _render_bars(self, bars: Sequence[tuple[str, str, str]]) -> Image.Image:
        """Render a row for each bar: its name, its low value, the colors, its high value."""
        font = ImageFont.load_default(11)
        widths = [max(int(font.getlength(each)) + 1 for each in column) for column in zip(*bars, strict=True)]
        left = GAP + widths[0] + GAP + widths[1] + GAP
        size = left + BAR_WIDTH + GAP + widths[2] + GAP, len(bars) * (BAR_HEIGHT + 2) + GAP
        legend, strip = Image.new("RGB", size, "white"), self.colors.expand(BAR_HEIGHT - 2, -1, -1).contiguous()
        canvas = ImageDraw.Draw(legend)
        for row, (name, low, high) in enumerate(bars):
            top = GAP // 2 + row * (BAR_HEIGHT + 2)
            canvas.text((GAP, top), name, fill="black", font=font)
            canvas.text((left - GAP - font.getlength(low), top), low, fill="black", font=font)
            canvas.text((left + BAR_WIDTH + GAP, top), high, fill="black", font=font)
            legend.paste(Image.fromarray(strip.numpy()), (left, top + 1))
        return legend

    def __str__(self) -> str:
        return f"ColorMap({self.name!r}, {self.channels})"


def choose_preview(values: ValueRange, channels: int) -> Preview:
    """Return the preview of images for which none is configured.

    It is :class:`Gray` for integers of 8 and 16 bits, and for three channels of one bounded range, which are taken for
    RGB; and :class:`ColorMap` for all others, which are fields of numbers.
    """
    is_rgb = channels == 3 and values.bounded and not isinstance(values.low, list)
    return Gray() if is_rgb or values.dtype in ("uint8", "int8", "uint16", "int16") else ColorMap()


def _scale(values: ValueRange, pixels: Tensor) -> Tensor:
    """Return values as gray levels, (n, c, h, w) uint8."""
    if values == UINT8:
        return pixels
    x = values.to_float(pixels)
    if values.masked:
        x = x.nan_to_num(-SHOWN_DEVIATIONS)
    return UINT8.to_data(x if values.bounded else x / SHOWN_DEVIATIONS)


def _get_ends(values: ValueRange, channel: int) -> tuple[float, float]:
    """Return the values of a channel that are shown as 0 and as 255."""
    low, high = (each[channel] if isinstance(each, list) else each for each in (values.low, values.high))
    half = (high - low) / 2 * (1 if values.bounded else SHOWN_DEVIATIONS)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _put_side_by_side(shown: Tensor) -> Tensor:
    """Return the channels of images (n, c, h, w) from left to right, (n, 1, h, c w)."""
    return torch.cat(torch.unbind(shown[:, :, None], dim=1), dim=3)
