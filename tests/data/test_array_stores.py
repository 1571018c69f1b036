"""HDF5 and zarr files are read as .npy files are, with classes beside the images, also by other processes."""

import multiprocessing
import pickle
import sys

import numpy as np
import pytest

from lightning_ddpm.data import ArrayFile, ImageDataModule
from lightning_ddpm.data.array_stores import ArrayFileImages
from lightning_ddpm.utils.errors import UserError

IMAGES = np.random.default_rng(0).normal(10, 3, (12, 2, 4, 6)).astype(np.float32)
CLASSES = np.arange(12) % 3


def write_hdf5(folder, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "all.h5", "w") as file:
        for name, each in arrays.items():
            file.create_dataset(name, data=each, dtype=each.dtype.newbyteorder(">"), chunks=True, compression="gzip")
    return "all.h5"


def write_zarr(folder, **arrays):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "all.zarr"), mode="w")
    for name, each in arrays.items():
        group.create_array(name, data=each, chunks=(3, *each.shape[1:]))
    return "all.zarr"


def write_npy(folder, images, classes=None):
    np.save(folder / "all.npy", images)
    np.save(folder / "classes.npy", classes if classes is not None else CLASSES)
    return "all.npy"


KINDS = {".h5": write_hdf5, ".zarr": write_zarr, ".npy": write_npy}


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_classes_are_read_from_a_file_of_any_kind(kind, tmp_path) -> None:
    name = KINDS[kind](tmp_path, images=IMAGES, classes=CLASSES)
    labels = "classes.npy" if kind == ".npy" else "classes"
    key = None if kind == ".npy" else "images"
    data = ImageDataModule(ArrayFile(name, key=key, labels=labels, holdout=0.25), root=str(tmp_path))
    chosen = np.arange(12) % 4 != 3
    assert np.array_equal(data.train.images.numpy(), IMAGES[chosen])
    assert data.train.labels.tolist() == CLASSES[chosen].tolist()
    assert data.class_names() == ["0", "1", "2"]
    images = ArrayFileImages(tmp_path / name, key)
    assert np.array_equal(pickle.loads(pickle.dumps(images)).read(7), IMAGES[7])  # noqa: S301
    with multiprocessing.get_context("fork").Pool(2) as workers:
        assert np.array_equal(np.stack(workers.map(images.read, range(12))), IMAGES)


@pytest.mark.parametrize("kind", [".h5", ".zarr"])
def test_arrays_that_are_not_there_are_named(kind, tmp_path) -> None:
    name = KINDS[kind](tmp_path, images=IMAGES, other=IMAGES[:, 0], classes=CLASSES)
    for settings, message in (
        ({}, "has several arrays; it has classes, images, other: set data.source.key"),
        ({"key": "fields"}, "has no array fields; it has classes, images, other"),
        ({"key": "images", "labels": "other"}, "the classes other of .* are float32 of shape"),
        ({"key": "classes"}, r"has an image of shape \(\); expected \(channels, height, width\)"),
    ):
        with pytest.raises(UserError, match=message):
            ImageDataModule(ArrayFile(name, **settings), root=str(tmp_path))


@pytest.mark.parametrize(("kind", "package"), [(".h5", "h5py"), (".zarr", "zarr")])
def test_a_missing_package_is_named_with_its_extra(kind, package, tmp_path, monkeypatch) -> None:
    name = KINDS[kind](tmp_path, images=IMAGES)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"need the package {package}.*lightning-ddpm\[arrays\]"):
        ImageDataModule(ArrayFile(name), root=str(tmp_path))


def test_damaged_files_and_classes_beyond_the_names_are_refused(tmp_path) -> None:
    name = write_hdf5(tmp_path, images=IMAGES, classes=CLASSES)
    source = ArrayFile(name, key="images", labels="classes", classes=["a", "b"])
    with pytest.raises(UserError, match=r"the images have the class 2, and data\.source\.classes 2 names"):
        source.class_names(tmp_path)
    with pytest.raises(UserError, match=r"names the classes in data\.source\.labels, which is not given"):
        ArrayFile(name, classes=["a"])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])
    with pytest.raises(UserError, match="is not a whole HDF5 file of numbers"):
        ImageDataModule(ArrayFile(name), root=str(tmp_path))
