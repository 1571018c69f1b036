"""Folders of arrays and one array of all images: what is taken from them, and what is refused in words."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from pytorch_lightning import Callback
from sklearn.datasets import load_digits

from lightning_ddpm.data import ArrayFile, ArrayFolder, Digits, ImageDataModule
from lightning_ddpm.data.array_files import ArrayDataset
from lightning_ddpm.data.array_stores import ArrayFileImages
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.utils.errors import UserError

RANDOM = np.random.default_rng(0)


def write_folder(folder: Path, arrays) -> Path:
    for index, array in enumerate(arrays):
        path = folder / f"{index:04d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    return folder


def climate(n: int = 40) -> np.ndarray:
    """Return n fields of 5 channels of very different units, 4x6, float32."""
    return (280 + 10.0 ** np.arange(-2, 3)[:, None, None] * RANDOM.standard_normal((n, 5, 4, 6))).astype(np.float32)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def train(folder, source, root, **model):
    losses, data = Losses(), ImageDataModule(source, root=str(root), batch_size=32)
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, callbacks=[losses], max_steps=8)
    trainer.fit(tiny_model(values=data.values, **model), datamodule=data)
    return losses.values


def test_digits_as_floats_give_the_curve_of_digits_as_bytes(tmp_path) -> None:
    digits, expected = load_digits().images.astype(np.float32), train(tmp_path, Digits(), tmp_path)
    held_out = np.arange(len(digits)) % 10 == 9
    for name, images, high in (("levels", (digits * 255 / 16).round(), 255.0), ("counts", digits, 16.0)):
        np.save(tmp_path / f"{name}.npy", images[~held_out])
        np.save(tmp_path / f"{name}_held_out.npy", images[held_out])
        source = ArrayFile(f"{name}.npy", f"{name}_held_out.npy", low=0.0, high=high)
        losses = train(tmp_path, source, tmp_path)
        if name == "levels":
            assert losses == expected  # the same floats reach the model
        else:
            np.testing.assert_allclose(losses[:4], expected[:4], rtol=1e-3)  # the rounding to 256 levels, which grows


def test_shape_type_and_statistics_are_those_of_the_training_files(tmp_path) -> None:
    fields = climate()
    source = ArrayFolder(holdout=0.25)
    data = ImageDataModule(source, root=str(write_folder(tmp_path, fields)))
    assert data.image_shape == (5, 4, 6)
    training = np.delete(fields, np.arange(3, 40, 4), axis=0)
    low, high = (np.array(each) for each in (data.values.low, data.values.high))
    np.testing.assert_allclose((low + high) / 2, training.mean((0, 2, 3), dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose((high - low) / 2, training.std((0, 2, 3), dtype=np.float64), rtol=1e-7)
    assert (len(data.train), len(data.held_out)) == (30, 10)
    x_0, _ = data.on_after_batch_transfer(data.train.__getitems__(range(30)), 0)
    torch.testing.assert_close(x_0.mean((0, 2, 3)), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(x_0.var((0, 2, 3), correction=0), torch.ones(5), atol=1e-3, rtol=0)
    assert torch.equal(data.values.to_data(x_0).round(decimals=1), data.train.images.round(decimals=1))


def test_files_of_any_form_are_read(tmp_path) -> None:
    image = RANDOM.integers(0, 65536, (4, 6)).astype(">u2")  # without channels, in the other byte order
    np.save(tmp_path / "a.npy", image)
    np.savez_compressed(tmp_path / "b.npz", image=image[None].astype("<u2"))
    data = ImageDataModule(ArrayFolder(holdout=0.5), root=str(tmp_path))
    assert (data.image_shape, data.values) == ((1, 4, 6), ValueRange("uint16", 0.0, 65535.0))
    for each in (data.train, data.held_out):
        assert np.array_equal(each[0][0][0].numpy(), image)


def test_first_level_folders_are_classes(tmp_path) -> None:
    for name in ("sea", "land"):
        write_folder(tmp_path / name, np.ones((4, 1, 4, 4), np.uint8))
    source = ArrayFolder(holdout=0.5)
    assert source.class_names(tmp_path) == ["land", "sea"]
    source.inspect(tmp_path)
    assert source.open(tmp_path, "train").labels.tolist() == [0, 0, 1, 1]


def test_a_mapped_file_of_all_images_pickles_without_them(tmp_path) -> None:
    np.save(tmp_path / "all.npy", climate())
    data = ArrayDataset(ArrayFileImages(tmp_path / "all.npy"), range(5, 9))
    content = pickle.dumps(data)
    assert len(content) < 4000
    copy = pickle.loads(content)  # noqa: S301
    assert isinstance(copy.images.read(8).base, np.memmap)
    assert torch.equal(copy[3][0], torch.from_numpy(np.load(tmp_path / "all.npy")[8]))


def with_value(value, dtype=np.float32, at=3):
    arrays = np.ones((4, 2, 4, 4), dtype) * np.arange(4).reshape(4, 1, 1, 1).astype(dtype)
    arrays[at, 1, 2, 2] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (with_value(np.nan), {}, r"0003.npy: it has the value nan; fill in"),
        (with_value(-np.inf, at=0), {}, r"0000.npy: it has the value -inf"),
        (with_value(7), {"low": 0.0, "high": 5.0}, r"0003.npy: it has the value 7.0, outside 0..5; correct it"),
        (with_value(900, np.uint16), {"low": 0.0, "high": 255.0}, "it has the value 900, outside 0..255"),
        ([np.ones((2, 4, 4)), np.ones((2, 4, 5))], {}, "0001.npy: it is 2x4x5 and 0000.npy is 2x4x4; arrays are not"),
        ([np.ones((2, 4, 4)), np.ones((3, 4, 4))], {}, "0001.npy: it is 3x4x4 and 0000.npy is 2x4x4; arrays are not"),
        (
            [np.ones((2, 4, 4)), np.ones((2, 4, 4), int)],
            {},
            "are int64, and those of the first image float64",
        ),
        (
            np.ones((4, 2, 4, 4), np.float32),
            {},
            r"all values of channel 0 .* are 1, so that",
        ),
        (with_value(7), {"low": 0.0}, "give low and high, or mean and std, or none of them; got low"),
        (with_value(7), {"mean": [1.0], "std": [1.0]}, "data.source.mean has 1 numbers and the images have 2 channels"),
        (with_value(7), {"mean": 1.0, "std": [1.0, 2.0]}, "mean and std must both be numbers or lists"),
        (with_value(7), {"low": [0.0, 0.0], "high": 9.0}, r"low and high must both be .* got \[0.0, 0.0\] and 9.0"),
        (with_value(7), {"mean": 1.0, "std": 0.0}, "std must be above 0 in every channel, got 0.0"),
        (np.ones((2, 4, 4, 4), np.complex64), {}, "0000.npy holds complex64; values have one of the types"),
        (np.ones((2, 1, 1, 4, 4)), {}, r"has an image of shape \(1, 1, 4, 4\); expected \(channels, height, width\)"),
        ([np.array([object()])], {}, "0000.npy: it is not a whole file of numbers"),
        ([], {}, r"holds no images \(.npy, .npz, .tif, .tiff\)"),
    ],
)
def test_unusable_arrays_are_refused_before_training(tmp_path, arrays, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        ImageDataModule(ArrayFolder(**settings), root=str(write_folder(tmp_path, arrays)))


def test_a_file_that_is_missing_or_cut_off_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*train.npy; check data.root and data.source.file"):
        ImageDataModule(ArrayFile(), root=str(tmp_path))
    np.save(tmp_path / "train.npy", climate())
    (tmp_path / "train.npy").write_bytes((tmp_path / "train.npy").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is not a whole .npy file of numbers"):
        ImageDataModule(ArrayFile(), root=str(tmp_path))


def write_header(path: Path, header: bytes) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def test_a_file_that_is_no_array_of_an_image_is_refused_for_its_own_reason(tmp_path, monkeypatch) -> None:
    write_folder(tmp_path, climate(3))
    write_header(tmp_path / "0001.npy", b"{'descr': ('<f4', ")
    write_header(tmp_path / "0002.npy", b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000, 1000)}")
    np.savez(tmp_path / "0003.npz", a=np.ones(2), b=np.ones(2))
    outside = tmp_path.parent / f"{tmp_path.name}.npy"
    np.save(outside, climate(1)[0])
    (tmp_path / "0004.npy").symlink_to(outside)
    (tmp_path / "0005.npy").touch()
    (tmp_path / "0006.tif").write_bytes(b"II*\0")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError) as caught:
        ImageDataModule(ArrayFolder(), root=str(tmp_path))
    _, *faults = str(caught.value).splitlines()
    expected = ("it is not a whole file of numbers", "it is not a whole file of numbers", "it has the arrays a, b; an")
    expected += ("it is a link that leads out of", "the file is empty", "TIFF files need the package tifffile")
    assert len(faults) == len(expected)
    assert all(f": {reason}" in fault for reason, fault in zip(expected, faults, strict=True))


def test_a_folder_without_training_images_is_refused(tmp_path) -> None:
    (tmp_path / "train").mkdir()
    write_folder(tmp_path / "test", climate(2))
    with pytest.raises(UserError, match=r"train holds no image for the split 'train'; each split needs at least one"):
        ImageDataModule(ArrayFolder(), root=str(tmp_path))


def test_a_single_image_cannot_be_held_out(tmp_path) -> None:
    np.save(tmp_path / "train.npy", climate(1))
    data = ImageDataModule(ArrayFile(), root=str(tmp_path))
    assert len(data.train) == 1
    with pytest.raises(UserError, match=r"train.npy holds no image for the split 'test'; each split needs at least"):
        _ = data.held_out


def test_images_are_checked_once_until_a_file_changes(tmp_path, monkeypatch) -> None:
    write_folder(tmp_path, climate(4))
    first = ImageDataModule(ArrayFolder(), root=str(tmp_path)).values
    with monkeypatch.context() as patch:
        patch.setattr("lightning_ddpm.data.array_files._scan", None)
        assert ImageDataModule(ArrayFolder(), root=str(tmp_path)).values == first
    np.save(tmp_path / "0000.npy", climate(1)[0] + 1)
    assert ImageDataModule(ArrayFolder(), root=str(tmp_path)).values != first
