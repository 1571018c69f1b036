"""Worker processes that are not forked read every kind of dataset: Python starts them so from version 3.14 on."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import Together
from PIL import Image
from torch.utils.data import DataLoader

from lightning_ddpm.data import LSUN, Digits, ImageDataset, ImageFolder
from lightning_ddpm.data.datasets import FileDataset
from lightning_ddpm.data.decode_cache import decode_to_file
from lightning_ddpm.data.sample_images import open_npz_samples, open_sample_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine images in three classes, each of one grey level of its own."""
    root = tmp_path_factory.mktemp("images")
    for index in range(9):
        (root / "abc"[index % 3]).mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * index).save(root / "abc"[index % 3] / f"{index}.png")
    return root


def open_lsun(folder: Path, tmp_path: Path) -> ImageDataset:
    lmdb = pytest.importorskip("lmdb")
    target = tmp_path / "tower_train_lmdb"
    with lmdb.open(str(target), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for index, path in enumerate(sorted(folder.rglob("*.png"))):
            transaction.put(str(index).encode(), path.read_bytes())
    return LSUN("tower", 8).open(tmp_path, "train")


def open_mapped(folder: Path, tmp_path: Path) -> ImageDataset:
    files = ImageFolder(1, 8, holdout=0.2).open(folder, "train")
    assert isinstance(files, FileDataset)
    return decode_to_file(files, tmp_path, "images")


def open_npz(folder: Path, tmp_path: Path) -> ImageDataset:
    np.savez(tmp_path / "images.npz", arr_0=np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8, 1))
    images = open_npz_samples(tmp_path / "images.npz")
    assert images is not None
    return images


KINDS = {
    "digits": lambda folder, tmp_path: Digits().open(tmp_path, "test"),
    "folder": lambda folder, tmp_path: ImageFolder(1, 8, holdout=0.2).open(folder, "train"),
    "samples": lambda folder, tmp_path: open_sample_folder(folder),
    "mapped": open_mapped,
    "npz": open_npz,
    "lsun": open_lsun,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_read_the_same_images(method: str, folder: Path, tmp_path: Path) -> None:
    for name in KINDS:
        (tmp_path / name).mkdir()
    together = Together([build(folder, tmp_path / name) for name, build in KINDS.items()])
    context = multiprocessing.get_context(method)
    loader = DataLoader(
        together, batch_size=None, sampler=range(len(KINDS)), num_workers=1, multiprocessing_context=context
    )
    for index, (name, (images, labels)) in enumerate(zip(KINDS, loader, strict=True)):
        pixels, expected = together[index]
        assert torch.equal(images, pixels), name
        assert torch.equal(labels, expected), name
