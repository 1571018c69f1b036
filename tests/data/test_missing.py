"""NaN in the data: it is refused, or masked in every source of floats, and statistics are those of the other values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ddpm.data import ArrayFile, ArrayFolder, Downscaled, ImageDataModule, ImageFolder, ImageSource
from lightning_ddpm.data.missing import find_valid, measure_valid, pool_valid, split_missing
from lightning_ddpm.data.previews import ColorMap, Gray
from lightning_ddpm.data.tiff import write_tiff
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError

N, SHAPE = 12, (2, 6, 8)


def make_fields(changing: bool) -> np.ndarray:
    """Return fields (n, c, h, w) float32 without values on land in channel 0, and under moving clouds in channel 1."""
    random = np.random.default_rng(0)
    fields = (280 + 5 * random.standard_normal((N, *SHAPE))).astype(np.float32)
    fields[:, 0, :3, :5] = np.nan
    if changing:
        fields[:, 1][random.random((N, *SHAPE[1:])) < 0.3] = np.nan
    return fields


def write(folder: Path, kind: str, fields: np.ndarray) -> ImageSource:
    """Write fields as a source reads them; return the source, which holds out the last of them in order."""
    if kind == "file":
        np.save(folder / "train.npy", fields[: N - 2])
        np.save(folder / "test.npy", fields[N - 2 :])
        return ArrayFile("train.npy", "test.npy", nan="mask")
    for index, field in enumerate(fields):
        part = folder / ("train" if index < N - 2 else "test")
        part.mkdir(exist_ok=True)
        if kind == "tiff":
            with (part / f"{index:02d}.tif").open("wb") as file:
                write_tiff(field, file)
        else:
            np.save(part / f"{index:02d}.npy", field)
    return ImageFolder(2, SHAPE[1:], dtype="float32", nan="mask") if kind == "tiff" else ArrayFolder(nan="mask")


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "tiff"])
def test_every_source_of_floats_masks_nan_and_measures_the_other_values(
    kind: str, changing: bool, tmp_path: Path
) -> None:
    fields = make_fields(changing)
    source = write(tmp_path, kind, fields)
    data = ImageDataModule(source, root=str(tmp_path))
    data.prepare_data()
    training = fields[: N - 2].astype(np.float64)
    mean, std = np.nanmean(training, (0, 2, 3)), np.nanstd(training, (0, 2, 3))
    assert data.values.masked
    low, high = np.asarray(data.values.low), np.asarray(data.values.high)
    np.testing.assert_allclose((low + high) / 2, mean, rtol=1e-12)
    np.testing.assert_allclose((high - low) / 2, std, rtol=1e-9)
    pixels = data.train.__getitems__(range(N - 2))[0]
    np.testing.assert_array_equal(pixels.numpy(), fields[: N - 2])
    x_0, valid = split_missing(data.values.to_float(pixels))
    assert torch.equal(valid, ~torch.from_numpy(fields[: N - 2]).isnan())
    assert (x_0[~valid] == 0).all()
    for channel in range(2):
        seen = x_0[:, channel][valid[:, channel]].double()
        assert float(seen.mean()) == pytest.approx(0, abs=1e-4)
        assert float(seen.std(correction=0)) == pytest.approx(1, rel=1e-4)
    expected = torch.ones(SHAPE, dtype=torch.bool)
    expected[0, :3, :5] = False
    for _ in range(2):  # the second time from the cache
        assert torch.equal(find_valid(data.train), expected)


def test_moments_of_complete_images_are_those_of_numpy() -> None:
    images = np.random.default_rng(1).standard_normal((5, *SHAPE)) + 1e4
    mean, std = pool_valid([*map(measure_valid, images)], "images")
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std((0, 2, 3)), rtol=1e-9)


def test_a_given_range_holds_for_the_values_that_are_there(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", make_fields(True))
    source = ArrayFile(low=200.0, high=360.0, nan="mask")
    source.inspect(tmp_path)
    assert source.values == ValueRange("float32", 200.0, 360.0, masked=True)
    with pytest.raises(UserError, match=r"it has the value \d+\.\d+, outside 200\.\.281"):
        ArrayFile(low=200.0, high=281.0, nan="mask").inspect(tmp_path)


def test_without_the_mask_nan_is_refused_also_after_a_run_that_masks_it(tmp_path: Path) -> None:
    for kind in ("file", "folder", "tiff"):
        folder = tmp_path / kind
        folder.mkdir()
        masked = write(folder, kind, make_fields(False))
        masked.inspect(folder)
        masked.prepare(folder)
        refusing = {
            "file": ArrayFile("train.npy", "test.npy"),
            "folder": ArrayFolder(),
            "tiff": ImageFolder(2, SHAPE[1:], dtype="float32"),
        }[kind]
        with pytest.raises(UserError, match="it has the value nan; fill in what is missing"):
            refusing.inspect(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.astype(np.int16), "nan is mask, and values of int16 have no NaN"),
        (lambda fields: np.where(np.arange(N)[:, None, None, None] == 3, np.nan, fields), "all of its values are NaN"),
        (lambda fields: np.where(np.isnan(fields), np.inf, fields), "it has the value inf; fill in what is missing"),
        (lambda fields: fields * np.array([1, np.nan])[:, None, None], r"channel 1 .* is NaN in all training images"),
        (lambda fields: np.where(np.isnan(fields), fields, 280), "all values of channel 0 .* are 280"),
    ],
)
def test_what_cannot_be_masked_is_refused_before_training(change, message: str, tmp_path: Path) -> None:
    fields = make_fields(False)
    fields = change(np.nan_to_num(fields) if "int16" in message else fields)
    np.save(tmp_path / "train.npy", fields if fields.dtype == np.int16 else fields.astype(np.float32))
    with pytest.raises(UserError, match=message):
        ArrayFile(nan="mask").inspect(tmp_path)


def test_images_with_nan_are_cropped_and_not_resized(tmp_path: Path) -> None:
    write(tmp_path, "tiff", make_fields(False))
    cropped = ImageFolder(2, (6, 6), dtype="float32", nan="mask")
    cropped.inspect(tmp_path)
    assert torch.isnan(cropped.open(tmp_path, "train")[0][0]).sum() == 3 * 4  # a column of land is cut off
    with pytest.raises(UserError, match="it has NaN and is 6x8: images in which values are missing are not resized"):
        ImageFolder(2, 3, dtype="float32", nan="mask").inspect(tmp_path)


def test_what_needs_complete_images_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, "file", make_fields(False))
    with pytest.raises(UserError, match="Downscaled needs images with a value in every pixel"):
        Downscaled(source).inspect(tmp_path)
    with pytest.raises(UserError, match="ImageClassifier needs images with a value in every pixel"):
        ImageClassifier(SmallCNN(2, 8, 10), values=source.values)


def test_previews_show_missing_values_in_black_and_of_a_color_map_in_white() -> None:
    pixels = torch.tensor([[0.0, torch.nan], [1.0, 0.5]]).reshape(1, 1, 2, 2)
    bounded, unbounded = ValueRange("float32", 0.0, 1.0, masked=True), ValueRange("float32", -1, 1, False, True)
    for values in (bounded, unbounded):
        assert int(Gray().show(values, pixels)[0, 0, 0, 1]) == 0
        shown = ColorMap().show(values, pixels)
        assert shown[0, :, 0, 1].tolist() == [255, 255, 255]
        complete = ColorMap().show(ValueRange("float32", values.low, values.high, values.bounded), pixels.nan_to_num())
        assert torch.equal(shown[0, :, 1], complete[0, :, 1])
