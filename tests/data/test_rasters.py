"""Image files of 16 bits, floats and any number of channels keep their values, from the folder to the samples."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import ArrayFolder, ImageDataModule, ImageFolder
from lightning_ddpm.data.datasets import FileDataset
from lightning_ddpm.data.decode_cache import decode_to_file, decode_to_memory
from lightning_ddpm.data.image_io import read_image
from lightning_ddpm.data.numbered_images import (
    choose_suffix,
    get_image_path,
    is_whole,
    read_numbered,
    write_images,
)
from lightning_ddpm.data.rasters import read_raster
from lightning_ddpm.data.sample_images import open_npz_samples, write_npz_samples
from lightning_ddpm.data.tiff import write_tiff
from lightning_ddpm.data.value_range import DTYPES, ValueRange, to_array
from lightning_ddpm.utils.errors import UserError

tifffile = pytest.importorskip("tifffile")
RANDOM = np.random.default_rng(0)


def make_image(dtype: str, channels: int, height: int = 8, width: int = 12) -> np.ndarray:
    """Return an image with values from the whole range of the type."""
    if dtype.startswith("float"):
        return (1e3 * RANDOM.standard_normal((channels, height, width))).astype(dtype)
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, (channels, height, width), dtype, endpoint=True)


def any_range(dtype: str) -> ValueRange:
    return ValueRange(dtype, -1.0, 1.0, bounded=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_tiff_of_any_type_and_number_of_channels_is_read_as_it_was_written(dtype: str, channels: int) -> None:
    image, file = make_image(dtype, channels), io.BytesIO()
    write_tiff(image, file)
    pixels = read_raster(io.BytesIO(file.getvalue()), channels, (8, 12), any_range(dtype)).pixels
    assert pixels.dtype == DTYPES[dtype]
    assert np.array_equal(to_array(pixels, any_range(dtype)), image)


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"photometric": "minisblack"}, False),  # pages of one series
        ({"planarconfig": "separate"}, False),
        ({"planarconfig": "contig", "compression": "lzw", "predictor": True}, True),
        ({"byteorder": ">", "bigtiff": True}, False),
        ({"imagej": True}, False),
    ],
)
def test_tiff_files_of_other_programs_are_read(settings: dict, moved: bool, tmp_path: Path) -> None:
    image = make_image("uint16", 5)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(image, 0, 2) if moved else image, **settings)
    pixels = read_raster(tmp_path / "a.tif", 5, (8, 12), any_range("uint16")).pixels
    assert np.array_equal(pixels.numpy(), image)


def write_16_bit_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG of 16 bits, (1 or 3, h, w), by hand: Pillow has no colours of 16 bits."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = np.moveaxis(image, 0, 2).astype(">u2")
    header = struct.pack(">IIBBBBB", image.shape[2], image.shape[1], 16, 0 if len(image) == 1 else 2, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_16_bits_keeps_all_of_them(channels: int, tmp_path: Path) -> None:
    image = make_image("uint16", channels)
    write_16_bit_png(tmp_path / "a.png", image)
    assert np.array_equal(read_raster(tmp_path / "a.png", channels, (8, 12), any_range("uint16")).pixels.numpy(), image)
    high = read_image(tmp_path / "a.png", channels, (8, 12)).pixels  # what ImageFolder does with 8 bits
    assert np.abs(high.numpy().astype(int) - (image >> 8)).max() <= 1


def test_a_larger_image_is_resized_as_the_decoder_of_8_bits_does() -> None:
    smooth = Image.fromarray(make_image("uint8", 3, 40, 60).transpose(1, 2, 0)).resize((60, 40), box=(0, 0, 15, 10))
    png, tif = io.BytesIO(), io.BytesIO()
    smooth.save(png, "PNG")
    tifffile.imwrite(tif, np.asarray(smooth).astype(np.float32), photometric="rgb")
    expected = read_image(io.BytesIO(png.getvalue()), 3, (12, 20)).pixels.float()
    pixels = read_raster(io.BytesIO(tif.getvalue()), 3, (12, 20), any_range("float32")).pixels
    assert (pixels - expected).abs().max() <= 1.0  # Pillow rounds after each of two passes
    image = np.asarray(smooth)
    assert image.min() <= pixels.min()
    assert pixels.max() <= image.max()


def write_folder(folder: Path, images) -> Path:
    for index, image in enumerate(images):
        with (folder / f"{index:04d}.tif").open("wb") as file:
            write_tiff(image, file)
    return folder


def test_a_folder_is_standardised_over_its_training_images(tmp_path: Path) -> None:
    images = [make_image("float32", 5) + 100 * np.arange(5, dtype=np.float32)[:, None, None] for _ in range(8)]
    write_folder(tmp_path, images)
    data = ImageDataModule(ImageFolder(5, (8, 12), dtype="float32", holdout=0.25), root=str(tmp_path))
    training = np.stack([image for index, image in enumerate(images) if index % 4 != 3])
    mean = (np.array(data.values.low) + np.array(data.values.high)) / 2
    np.testing.assert_allclose(mean, training.mean((0, 2, 3), dtype=np.float64), rtol=1e-6)
    assert np.array_equal(data.train.images.numpy(), training)
    arrays = ImageDataModule(ArrayFolder(holdout=0.25), root=str(tmp_path))
    assert arrays.values == data.values  # two ways to the same images
    assert torch.equal(arrays.train.images, data.train.images)


def test_a_folder_without_training_images_cannot_be_measured(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    write_folder(tmp_path / "test", [make_image("float32", 2)])
    with pytest.raises(UserError, match=r"train holds no image for the split 'train'; each split needs at least one"):
        ImageDataModule(ImageFolder(2, (8, 12), dtype="float32"), root=str(tmp_path))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_decoded_images_are_cached_in_their_own_type(dtype: str, tmp_path: Path) -> None:
    write_folder(tmp_path, [make_image(dtype, 2) for _ in range(4)])
    source = ImageFolder(2, (8, 12), dtype=dtype, mean=0.0, std=1.0)
    files = source.open(tmp_path, "train")
    assert isinstance(files, FileDataset)
    expected, _ = files.__getitems__(range(len(files)))
    for data in (decode_to_file(files, tmp_path / "cache", ""), decode_to_memory(files, "")):
        assert torch.equal(data.__getitems__(range(len(files)))[0], expected)


@pytest.mark.parametrize(
    ("settings", "image", "message"),
    [
        ({"channels": 5, "dtype": "uint16"}, make_image("uint16", 4), r"0000.tif: it has 4 channels, expected 5; set"),
        ({"channels": 1, "dtype": "float32"}, make_image("uint16", 1), r"its values are uint16, expected float32"),
        (
            {"channels": 1, "dtype": "uint16", "low": 0.0, "high": 4095.0},
            np.full((1, 8, 12), 5000, np.uint16),
            r"0000.tif: it has the value 5000, outside 0..4095; correct it, or give the range",
        ),
        (
            {"channels": 1, "dtype": "float32"},
            np.full((1, 8, 12), np.nan, np.float32),
            "0000.tif: it has the value nan",
        ),
        ({"channels": 1, "dtype": "float32"}, np.ones((1, 8, 12), np.float32), "all values of channel 0 .* are 1, so"),
        ({"channels": 1, "dtype": "uint16", "size": 16}, make_image("uint16", 1), "the image is 12x8, less than 16x16"),
        ({"channels": 1, "dtype": "uint16", "low": 0.0}, make_image("uint16", 1), "give low and high, or mean and std"),
        ({"channels": 0}, make_image("uint16", 1), "channels must be at least 1, got 0"),
        ({"dtype": "int64"}, make_image("uint16", 1), "dtype must be one of uint8, uint16, .* got int64"),
    ],
)
def test_images_of_other_values_are_refused_before_training(settings, image, message, tmp_path: Path) -> None:
    write_folder(tmp_path, [image, image])

    def prepare() -> None:
        ImageDataModule(ImageFolder(**({"size": (8, 12)} | settings)), root=str(tmp_path)).prepare_data()

    with pytest.raises(UserError, match=message):
        prepare()


@pytest.mark.parametrize("keep", [3, 7, 60, 300])
def test_a_tiff_that_is_cut_off_is_refused(keep: int, tmp_path: Path) -> None:
    write_folder(tmp_path, [make_image("uint16", 2)])
    path = tmp_path / "0000.tif"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"not a whole TIFF|not an image"):
        read_raster(path, 2, (8, 12), any_range("uint16"))


def test_a_tiff_of_more_axes_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((2, 3, 8, 12), np.uint16), metadata={"axes": "ZCYX"}, photometric="minisblack"
    )
    with pytest.raises(UserError, match=r"its axes are ZCYX of 2x3x8x12; expected height, width and channels alone"):
        read_raster(tmp_path / "a.tif", 2, (8, 12), any_range("uint16"))


def test_indices_of_palettes_and_scaled_values_are_refused(tmp_path: Path) -> None:
    image, values = make_image("uint8", 1)[0] % 100, ValueRange("uint8", 0.0, 100.0)
    palette = Image.fromarray(image).convert("RGB").quantize(16)
    for name in ("a.png", "a.gif"):
        palette.save(tmp_path / name)
    colors = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="palette", colormap=colors)
    for name in ("a.png", "a.gif", "a.tif"):
        with pytest.raises(UserError, match="it has a palette, whose indices are not values; save it as grayscale"):
            read_raster(tmp_path / name, 1, (8, 12), values)
    for largest, dtype in ((4095, "uint16"), (100, "uint8")):
        pixels = (make_image(dtype, 1)[0] % (largest + 1)).astype(">u2" if largest > 255 else "u1")
        (tmp_path / "a.pgm").write_bytes(b"P5\n12 8\n%d\n" % largest + pixels.tobytes())
        with pytest.raises(UserError, match=f"its largest value is {largest}, and Pillow scales its values to"):
            read_raster(tmp_path / "a.pgm", 1, (8, 12), any_range(dtype))
    full = make_image("uint16", 1)
    (tmp_path / "a.pgm").write_bytes(b"P5\n12 8\n65535\n" + full.astype(">u2").tobytes())
    assert np.array_equal(read_raster(tmp_path / "a.pgm", 1, (8, 12), any_range("uint16")).pixels.numpy(), full)
    (tmp_path / "a.pgm").write_bytes(b"P5\n12 8\n255\n" + image.tobytes())
    assert np.array_equal(read_raster(tmp_path / "a.pgm", 1, (8, 12), values).pixels[0].numpy(), image)


def test_grayscale_whose_0_is_white_is_reversed_as_pillow_does_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for dtype, white in (("uint8", 255), ("uint16", 65535)):
        image = make_image(dtype, 1)
        tifffile.imwrite(path, image[0], photometric="miniswhite")
        found = read_raster(path, 1, (8, 12), any_range(dtype)).pixels.numpy()
        assert np.array_equal(found, white - image.astype(int))
        if dtype == "uint8":
            assert np.array_equal(found[0], np.asarray(Image.open(path)))
    for image in (make_image("int16", 1)[0], make_image("float32", 1)[0], np.moveaxis(make_image("uint16", 2), 0, 2)):
        samples = {"planarconfig": "contig"} if image.ndim == 3 else {}
        tifffile.imwrite(path, image, photometric="miniswhite", **samples)
        expected = rf"\(MINISWHITE\), which has no meaning for \d x {image.dtype}; save it as"
        with pytest.raises(UserError, match=expected):
            read_raster(path, image.ndim - 1, (8, 12), any_range(image.dtype.name))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch) -> None:
    write_folder(tmp_path, [make_image("uint16", 2)] * 2)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"need the package tifffile.*pip install .*'tifffile>="):
        ImageDataModule(ImageFolder(2, (8, 12), dtype="uint16"), root=str(tmp_path)).prepare_data()


def test_a_tiff_of_samples_is_read_back(tmp_path: Path) -> None:
    values = any_range("float32")
    pixels = torch.from_numpy(np.stack([make_image("float32", 5) for _ in range(2)]))
    write_images(tmp_path, 0, pixels, values, choose_suffix(5, values, "tiff"))
    path = get_image_path(tmp_path, 1, ".tif")
    assert torch.equal(read_numbered(path, values), pixels[1])
    assert is_whole(path, (5, 8, 12), values)
    path.write_bytes(path.read_bytes()[:-9])
    assert not is_whole(path, (5, 8, 12), values)
    with pytest.raises(UserError, match="PNG files cannot hold images of 5 channels of float32"):
        choose_suffix(5, values, "png")


def test_samples_in_an_npz_are_read_back(tmp_path: Path) -> None:
    images = [make_image("uint8", 3) for _ in range(3)]
    write_npz_samples(tmp_path / "all.npz", images, 3, (3, 8, 12))
    data = open_npz_samples(tmp_path / "all.npz")
    assert data is not None
    assert np.array_equal(data.__getitems__(range(3))[0].numpy(), np.stack(images))
