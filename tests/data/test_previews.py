"""Previews of any values and channels: what is shown, by which rule, and what is refused before training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model, tiny_network
from matplotlib import colormaps

from lightning_ddpm.callbacks import SampleGrid
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.data.previews import Channels, ColorMap, Gray, choose_preview
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.utils.errors import UserError

FIELDS = ValueRange("float32", [-2.0, 270.0], [2.0, 290.0], bounded=False)


def test_gray_shows_one_or_three_channels_as_they_are_and_others_side_by_side() -> None:
    values = ValueRange("float32", 0.0, 10.0)
    for channels in (1, 3):
        shown = Gray().show(values, torch.full((2, channels, 4, 6), 10.0))
        assert (shown.shape, shown.dtype, int(shown.min())) == ((2, channels, 4, 6), torch.uint8, 255)
    strips = Gray().show(values, torch.arange(5.0).mul(2.5)[None, :, None, None].expand(2, 5, 4, 6))
    assert strips.shape == (2, 1, 4, 30)
    assert strips[0, 0, 0, ::6].tolist() == [0, 64, 128, 191, 255]
    unbounded = ValueRange("float32", -1.0, 1.0, bounded=False)
    assert Gray().show(unbounded, torch.tensor([-3.0, 0.0, 4.0]).reshape(3, 1, 1, 1)).flatten().tolist() == [
        0,
        128,
        255,
    ]


def test_grids_of_bytes_are_as_before() -> None:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(choose_preview(UINT8, 3).arrange(UINT8, pixels), arrange_grid(pixels))
    titles = ["a", "b"]
    assert torch.equal(Gray().arrange(UINT8, pixels, 2, titles), arrange_grid(pixels, 2, titles))


def test_channels_are_chosen_by_number() -> None:
    pixels = torch.arange(5, dtype=torch.uint8)[None, :, None, None].expand(1, 5, 2, 2)
    assert Channels([3, 2, 1]).show(UINT8, pixels)[0, :, 0, 0].tolist() == [3, 2, 1]
    assert Channels([4]).show(UINT8, pixels).unique().tolist() == [4]
    assert Channels([4, 0]).show(UINT8, pixels)[0, 0, 0].tolist() == [4, 4, 0, 0]


def test_a_color_map_shows_its_colors_and_a_bar_with_the_ends_of_each_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.tensor([[-6.0, 0.0, 6.0], [250.0, 280.0, 310.0]])[None, :, None]  # 1x2x1x3: ends and means
    shown = ColorMap("magma").show(FIELDS, pixels)
    expected = (colormaps["magma"](np.array([0, 128, 255] * 2)) * 255).round().astype(np.uint8)[:, :3]
    assert torch.equal(shown[0, :, 0].T, torch.from_numpy(expected))
    drawn: list[tuple[str, str, str]] = []
    preview = ColorMap()
    render = preview._render_bars
    monkeypatch.setattr(preview, "_render_bars", lambda bars: (drawn.extend(bars), render(bars))[1])
    grid = preview.arrange(FIELDS, pixels.expand(4, -1, -1, -1))
    assert drawn == [("channel 0", "-6", "6"), ("channel 1", "250", "310")]
    assert grid.shape[0] == 3
    colors = {tuple(each) for each in grid.flatten(1).T.tolist()}
    assert {tuple(each) for each in preview.colors.tolist()} <= colors, "the bar has all colors"
    drawn.clear()
    preview.arrange(ValueRange("float32", 0.0, 1.0), torch.zeros(1, 5, 4, 4))
    assert drawn == [("all channels", "0", "1")]


@pytest.mark.parametrize(
    ("values", "channels", "kind"),
    [
        (UINT8, 1, Gray),
        (UINT8, 5, Gray),
        (ValueRange("uint16", 0.0, 65535.0), 1, Gray),
        (ValueRange("float32", 0.0, 1.0), 3, Gray),
        (ValueRange("float32", [0.0] * 3, [1.0, 2.0, 3.0]), 3, ColorMap),
        (ValueRange("float32", 0.0, 1.0), 1, ColorMap),
        (ValueRange("int32", -1.0, 1.0, bounded=False), 3, ColorMap),
    ],
)
def test_numbers_are_colored_and_images_are_not(values: ValueRange, channels: int, kind: type) -> None:
    assert isinstance(choose_preview(values, channels), kind)


@pytest.mark.parametrize(
    ("preview", "n", "message"),
    [
        (Channels([0, 7]), 4, "shows channel 7, and the images have the channels 0..0"),
        (ColorMap(channels=[-1]), 4, "shows channel -1"),
        (None, 2_000_000, "show fewer images, or choose channels"),
    ],
)
def test_a_grid_that_cannot_be_made_is_refused_before_training(preview, n, message, tmp_path: Path) -> None:
    model = tiny_model(network=tiny_network())
    with pytest.raises(UserError, match=message):
        SampleGrid(n=n, every_n_steps=1, preview=preview).setup(quiet_trainer(tmp_path), model, "fit")


def test_names_that_no_preview_has_are_refused() -> None:
    with pytest.raises(UserError, match="no color map 'viridiss'"):
        ColorMap("viridiss")
    for empty in (lambda: Channels([]), lambda: ColorMap(channels=[])):
        with pytest.raises(UserError, match="at least one channel, got none"):
            empty()
