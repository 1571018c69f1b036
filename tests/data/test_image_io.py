"""Conversion between files, uint8 and floats is exact, and files of all kinds are decoded as documented."""

import io
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from lightning_ddpm.data.image_io import (
    TITLE_HEIGHT,
    arrange_grid,
    decode_image,
    read_image,
    save_image,
    to_float,
    to_uint8,
)
from lightning_ddpm.utils.errors import UserError

LEVELS = torch.arange(256, dtype=torch.uint8)


def save_and_open(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    """Save an image to memory and open it again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def make_image(*rows: list[tuple[int, ...]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def get_pixel(tensor: Tensor, row: int = 0, column: int = 0) -> tuple[int, ...]:
    return tuple(tensor[:, row, column].tolist())


# ---- floats and uint8 --------------------------------------------------------------------------------------------


def test_all_256_levels_are_restored_after_conversion_to_floats() -> None:
    assert torch.equal(to_uint8(to_float(LEVELS)), LEVELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_rounded_to_the_nearest_level_not_truncated(dtype: torch.dtype) -> None:
    for shift in (-0.49, -0.3, 0.3, 0.49):
        assert torch.equal(to_uint8((LEVELS.to(dtype) + shift) / 127.5 - 1), LEVELS)


def test_levels_are_equally_spaced_from_minus_1_to_1() -> None:
    x = to_float(LEVELS)
    assert x.dtype == torch.float32
    assert x[0] == -1
    assert x[255] == 1
    torch.testing.assert_close(x.diff(), torch.full((255,), 1 / 127.5), rtol=0, atol=1e-6)


def test_values_outside_the_range_are_clamped() -> None:
    assert to_uint8(torch.tensor([-float("inf"), -9.0, -1.001])).tolist() == [0, 0, 0]
    assert to_uint8(torch.tensor([1.001, 9.0, float("inf")])).tolist() == [255, 255, 255]


# ---- decode ------------------------------------------------------------------------------------------------------

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = make_image([RED, GREEN], [BLUE, WHITE])


def test_an_image_of_the_required_size_keeps_every_pixel() -> None:
    pixels = torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8)
    image = save_and_open(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    assert torch.equal(decode_image(image, 3, 9), pixels)


def test_grayscale_is_kept_and_becomes_three_equal_channels_of_rgb() -> None:
    pixels = torch.randint(0, 256, (1, 9, 9), dtype=torch.uint8)
    image = save_and_open(Image.fromarray(pixels[0].numpy()))
    assert torch.equal(decode_image(image, 1, 9), pixels)
    assert torch.equal(decode_image(image, 3, 9), pixels.expand(3, 9, 9))


def test_rgb_becomes_its_luminance_in_grayscale() -> None:
    grayscale = decode_image(save_and_open(CORNERS), 1, 2)
    assert grayscale.shape == (1, 2, 2)
    assert grayscale.flatten().tolist() == [76, 150, 29, 255]  # 0.299 * 255, 0.587 * 255, 0.114 * 255


def test_palettes_are_looked_up() -> None:
    palette = save_and_open(CORNERS.convert("P", palette=Image.Palette.ADAPTIVE, colors=4))
    assert palette.mode == "P"
    decoded = decode_image(palette, 3, 2)
    assert [get_pixel(decoded, row, column) for row in (0, 1) for column in (0, 1)] == [RED, GREEN, BLUE, WHITE]


def test_images_of_one_bit_are_black_and_white() -> None:
    bits = save_and_open(Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1"))
    assert bits.mode == "1"
    assert decode_image(bits, 1, 2).flatten().tolist() == [0, 255, 255, 0]


def test_transparency_is_composited_over_white() -> None:
    rgba = make_image([(255, 0, 0, 255), (255, 0, 0, 0)], [(0, 0, 0, 128), (0, 0, 255, 51)])
    decoded = decode_image(save_and_open(rgba), 3, 2)
    assert get_pixel(decoded, 0, 0) == RED
    assert get_pixel(decoded, 0, 1) == WHITE
    assert get_pixel(decoded, 1, 0) == pytest.approx((127, 127, 127), abs=1)
    assert get_pixel(decoded, 1, 1) == pytest.approx((204, 204, 255), abs=1)


def test_transparent_grayscale_and_palette_entries_are_composited_over_white() -> None:
    grayscale = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 51)])
    assert decode_image(save_and_open(grayscale), 1, 2).flatten().tolist() == pytest.approx([204] * 4, abs=1)
    palette = CORNERS.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image = save_and_open(palette, transparency=palette.getpixel((0, 0)))
    assert get_pixel(decode_image(image, 3, 2), 0, 0) == WHITE
    assert get_pixel(decode_image(image, 3, 2), 0, 1) == GREEN


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16")])
def test_16_bit_grayscale_is_reduced_to_its_high_byte(kind: str, mode: str) -> None:
    levels = np.array([[0, 255, 256], [32768, 65279, 65280], [65535, 513, 4660]], dtype=np.uint16)
    image = save_and_open(Image.fromarray(levels), kind)
    assert image.mode == mode
    assert decode_image(image, 1, 3).flatten().tolist() == [0, 0, 1, 128, 254, 255, 255, 2, 0x12]
    assert torch.equal(decode_image(image, 3, 3), decode_image(image, 1, 3).expand(3, 3, 3))


def test_big_endian_16_bit_grayscale_is_reduced_to_its_high_byte() -> None:
    file = io.BytesIO()
    Image.frombytes("I;16B", (2, 2), bytes.fromhex("1234 ff00 00ff 8000")).save(file, "TIFF")
    image = Image.open(io.BytesIO(file.getvalue()))
    assert image.mode == "I;16B"
    assert decode_image(image, 1, 2).flatten().tolist() == [0x12, 0xFF, 0, 0x80]


def test_cmyk_becomes_rgb() -> None:
    cmyk = save_and_open(CORNERS.resize((32, 32), Image.Resampling.NEAREST).convert("CMYK"), "JPEG", quality=100)
    assert cmyk.mode == "CMYK"
    decoded = decode_image(cmyk, 3, 32)
    for (row, column), colour in {(4, 4): RED, (4, 28): GREEN, (28, 4): BLUE, (28, 28): WHITE}.items():
        assert get_pixel(decoded, row, column) == pytest.approx(colour, abs=12)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (4, [BLUE, WHITE, RED, GREEN]),
        (5, [RED, BLUE, GREEN, WHITE]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (7, [WHITE, GREEN, BLUE, RED]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_images_are_turned_upright_by_their_exif_orientation(orientation: int, upright: list[tuple[int, ...]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(save_and_open(CORNERS, exif=exif), 3, 2)
    assert [get_pixel(decoded, row, column) for row in (0, 1) for column in (0, 1)] == upright


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (31, 31)])
def test_an_image_smaller_than_the_crop_is_refused(size: tuple[int, int]) -> None:
    message = f"the image is {size[0]}x{size[1]}, less than 32x32; lower data.source.size"
    with pytest.raises(UserError, match=message):
        decode_image(Image.new("RGB", size), 3, 32)


@pytest.mark.parametrize("turned", [False, True])
def test_the_short_side_is_resized_and_the_center_is_cropped(turned: bool) -> None:
    # bands of 50, 100 and 50 pixels: the center square of the 200 x 100 image is green
    bands = np.repeat(np.array([[RED, GREEN, BLUE]], dtype=np.uint8), [50, 100, 50], axis=1).repeat(100, axis=0)
    image = Image.fromarray(bands.transpose(1, 0, 2).copy() if turned else bands)
    decoded = decode_image(image, 3, 50)
    across = decoded.transpose(1, 2) if turned else decoded
    assert decoded.shape == (3, 50, 50)
    # bicubic interpolation mixes the bands over two pixels at either edge
    assert all(get_pixel(across, row, column) == GREEN for row in (0, 25, 49) for column in range(3, 47))
    assert get_pixel(across, 25, 0)[0] == pytest.approx(get_pixel(across, 25, 49)[2], abs=1)


def test_a_square_image_is_not_cropped() -> None:
    image = CORNERS.resize((64, 64), Image.Resampling.NEAREST)
    decoded = decode_image(image, 3, 16)
    assert [get_pixel(decoded, row, column) for row in (0, 15) for column in (0, 15)] == [RED, GREEN, BLUE, WHITE]
    assert decoded.float().mean((1, 2)).tolist() == pytest.approx([127.5] * 3, abs=1)


def test_fine_patterns_are_blurred_to_their_mean_without_aliasing() -> None:
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    decoded = decode_image(Image.fromarray(stripes), 1, 16)
    assert (decoded[:, :, 1:-1].float() - 127.5).abs().max() < 3


def test_a_truncated_file_is_an_error() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    with pytest.raises(OSError, match="truncated"):
        decode_image(Image.open(io.BytesIO(file.getvalue()[:2000])), 3, 32)


@pytest.mark.parametrize(("limit", "refused"), [(1023, True), (1024, False), (None, False)])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_an_image_over_pillow_s_limit_is_refused_whatever_the_warning_filters(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, refused: bool, action: Literal["error", "ignore"]
) -> None:
    file = io.BytesIO()
    Image.new("L", (32, 32)).save(file, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    message = "more than 1,023 pixels, Pillow's limit against decompression bombs; save it smaller"
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(UserError, match=message) if refused else nullcontext():
            assert read_image(file, 1, 32).pixels.shape == (1, 32, 32)


# ---- save and grid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_images_are_read_back_exactly(tmp_path: Path, channels: int) -> None:
    pixels = torch.randint(0, 256, (channels, 7, 7), dtype=torch.uint8)
    save_image(pixels, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert torch.equal(decode_image(image, channels, 7), pixels)


@pytest.mark.parametrize(
    ("n", "columns", "shape"), [(9, None, (3, 3)), (10, None, (4, 3)), (10, 5, (2, 5)), (3, 3, (1, 3))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_row_by_row(
    n: int, columns: int | None, shape: tuple[int, int], channels: int
) -> None:
    pixels = torch.randint(0, 255, (n, channels, 64, 64), dtype=torch.uint8)
    grid = arrange_grid(pixels, columns)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, shape[0] * 66 + 2, shape[1] * 66 + 2)
    for i in range(n):
        top, left = 2 + 66 * (i // shape[1]), 2 + 66 * (i % shape[1])
        assert torch.equal(grid[:, top : top + 64, left : left + 64], pixels[i].expand(3, 64, 64))
    assert (grid[:, :2] == 255).all()
    assert (grid[:, :, :2] == 255).all()


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    pixels = torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8)
    grid = arrange_grid(pixels)
    assert grid.shape == (3, 2 * 50 + 2, 2 * 50 + 2)
    assert torch.equal(grid[0, 2:50:6, 2:50:6], pixels[0, 0])
    assert torch.equal(grid[0, 7:50:6, 7:50:6], pixels[0, 0])


def test_a_grid_can_be_saved(tmp_path: Path) -> None:
    grid = arrange_grid(torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8))
    save_image(grid, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), grid)


def test_titles_are_drawn_above_their_columns_and_leave_the_images_unchanged() -> None:
    pixels = torch.randint(0, 255, (4, 1, 24, 24), dtype=torch.uint8)
    plain = arrange_grid(pixels, 2)
    titled = arrange_grid(pixels, 2, titles=["ab", ""])
    assert titled.dtype == torch.uint8
    assert torch.equal(titled[:, TITLE_HEIGHT:], plain)
    header = titled[:, :TITLE_HEIGHT]
    dark = (header[0] < 128).any(0).nonzero().flatten()
    assert 2 <= dark.min() < dark.max() < 50  # in the first column only
    assert 15 <= dark.float().mean() <= 35  # in its middle
    assert (header[0] == header[1]).all()


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_long_titles_are_shortened_to_the_width_of_their_column(size: int, n: int) -> None:
    pixels = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    columns = min(n, 3)
    titled = arrange_grid(pixels, columns, titles=["a title that is far too long"] * columns)
    plain = arrange_grid(pixels, columns)
    assert titled.shape == (3, plain.shape[1] + TITLE_HEIGHT, plain.shape[2])
    gaps = (plain == 255).all(1).all(0)  # the padding between columns
    assert (titled[:, :TITLE_HEIGHT, gaps] == 255).all()
    assert (titled[:, :TITLE_HEIGHT, ~gaps] < 128).any()


def test_the_number_of_titles_must_be_that_of_the_columns() -> None:
    with pytest.raises(ValueError, match="a grid of 2 columns needs 2 titles, got 3"):
        arrange_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 2, titles=["a", "b", "c"])


@pytest.mark.parametrize("kind", ["text", "compressed text", "international text", "colour profile"])
def test_a_png_with_megabytes_of_metadata_is_read(kind: str) -> None:
    image, long = Image.new("RGB", (1, 1), (7, 7, 7)), "metadata " * 400_000
    texts, profile = PngImagePlugin.PngInfo(), b"profile " * 400_000 if kind == "colour profile" else None
    if kind == "international text":
        texts.add_itxt("comment", long, zip=True)
    elif "text" in kind:
        texts.add_text("comment", long, zip=kind == "compressed text")
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=texts, icc_profile=profile)
    before = PngImagePlugin.MAX_TEXT_CHUNK
    assert read_image(io.BytesIO(file.getvalue()), 1, 1).pixels.item() == 7
    assert before == PngImagePlugin.MAX_TEXT_CHUNK


def test_a_png_whose_metadata_would_fill_the_memory_is_refused() -> None:
    texts, file = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("comment", "0" * 100_000_000, zip=True)
    Image.new("RGB", (1, 1)).save(file, "PNG", pnginfo=texts)
    with pytest.raises(UserError, match="the image cannot be read: "):
        read_image(io.BytesIO(file.getvalue()), 1, 1)
