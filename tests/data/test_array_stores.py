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
def test_each_array_of_a_file_has_its_own_statistics(kind, tmp_path) -> None:
    name = KINDS[kind](tmp_path, a=IMAGES, b=IMAGES * 3 + 100)
    first, second = (ImageDataModule(ArrayFile(name, key=key), root=str(tmp_path)).values for key in ("a", "b"))
    assert first.low[0] < 20 < 100 < second.low[0]
    assert ArrayFileImages(tmp_path / name, "a").state != ArrayFileImages(tmp_path / name, "b").state


def test_held_out_images_have_files_of_their_own(tmp_path) -> None:
    for folder in (".", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / "all.npy", IMAGES)
        np.save(tmp_path / folder / "classes.npy", CLASSES if folder == "." else CLASSES[::-1])
    with pytest.raises(UserError, match=r"all.npy is both data\.source\.file and held_out_file; name another one"):
        ArrayFile("all.npy", "all.npy")
    for labels in (None, "classes.npy"):
        with pytest.raises(UserError, match=r"classes.npy holds the classes of all.npy; name those of b.npy in data"):
            ArrayFile("all.npy", "b.npy", labels="classes.npy", held_out_labels=labels)
    data = ImageDataModule(ArrayFile("all.npy", "other/all.npy", labels="classes.npy"), root=str(tmp_path))
    assert data.train.labels.tolist() == CLASSES.tolist() == data.held_out.labels.tolist()[::-1]
    source = ArrayFile("all.npy", labels="other/classes.npy", holdout=0.25)
    assert source._open(tmp_path, "train")[0].labels.tolist() == CLASSES[::-1].tolist()


def test_an_npz_file_and_classes_in_a_damaged_chunk_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "all.npz", IMAGES)
    with pytest.raises(UserError, match=r"all.npz is an npz file, which cannot be mapped into memory; save its array"):
        ImageDataModule(ArrayFile("all.npz"), root=str(tmp_path))
    name = write_hdf5(tmp_path, images=IMAGES, classes=np.arange(12) * 12345 % 7)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / name) as file:
        chunk = file["classes"].id.get_chunk_info(0)
    content = bytearray((tmp_path / name).read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"the classes classes of .*all.h5 cannot be read: "):
        ArrayFileImages(tmp_path / name, "images", "classes")


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
    with pytest.raises(UserError, match=rf"need the package {package}, .*: pip install .*'{package}>="):
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
