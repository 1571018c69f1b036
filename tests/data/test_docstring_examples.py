"""The examples in the docstrings of ImageSource and ImageDataset are complete and work."""

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_ddpm.data import ImageDataset, ImageSource
from lightning_ddpm.utils.errors import UserError


def define_example(documented: type, name: str) -> Any:
    """Execute the code block in a docstring and return the class of this name that it defines."""
    docstring = inspect.cleandoc(documented.__doc__ or "")
    lines = docstring.partition("::\n")[2].strip("\n").splitlines()
    block = [line for i, line in enumerate(lines) if all(not each or each.startswith(" ") for each in lines[: i + 1])]
    namespace = {**vars(sys.modules[documented.__module__]), "np": np}
    exec(textwrap.dedent("\n".join(block)), namespace)
    return namespace[name]


def test_the_example_of_an_image_source_works(tmp_path: Path) -> None:
    source: ImageSource = define_example(ImageSource, "Textures")()
    with pytest.raises(UserError, match=r"there is no textures\.npy in .*; set --data\.root"):
        source.prepare(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64), np.uint8)
    np.save(tmp_path / "textures.npy", images)
    source.prepare(tmp_path)
    train, test = source.open(tmp_path, "train"), source.open(tmp_path, "test")
    assert (source.channels, source.size) == (1, 64)
    assert len(train) == 18
    assert np.array_equal(test.__getitems__([0, 1])[0][:, 0], images[9::10])
    assert test.labels.tolist() == [-1, -1]
    assert source.image_files(tmp_path) == source.class_names(tmp_path) == []


def test_the_example_of_an_image_dataset_works(tmp_path: Path) -> None:
    example = define_example(ImageDataset, "Memmap")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    data: ImageDataset = example(tmp_path / "images.npy")
    pixels, labels = data.__getitems__([4, 1])
    assert len(data) == 5
    assert np.array_equal(pixels, images[[4, 1]])
    assert labels.tolist() == [-1, -1]
    assert data[2][1] == -1
    np.save(tmp_path / "images.npy", images[:4])
    assert example(tmp_path / "images.npy").fingerprint != data.fingerprint
