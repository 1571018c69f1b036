"""Images that are not uint8, and other broken promises of a user's source, are refused before they are used."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_ddpm.data import Digits, ImageDataModule, ImageDataset, ImageSource, MemoryDataset
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.data.sample_images import open_npz_samples, open_sample_folder
from lightning_ddpm.utils.errors import UserError

NONE = torch.full((4,), -1)


class Stored(ImageDataset):
    """A dataset of the user's that returns its tensor as it is."""

    def __init__(self, images: Tensor, labels: Tensor = NONE) -> None:
        self.images, self.labels, self.fingerprint = images, labels, "stored"

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.images[list(indices)], self.labels[list(indices)]


class Mine(Digits):
    """A source of the user's that opens what it is given; without class names."""

    def __init__(self, opened: object, names: Sequence[str] = ()) -> None:
        self.opened, self.names = opened, names

    def open(self, root: Path, split: Any) -> Any:
        return self.opened

    def class_names(self, root: Path) -> list[str]:
        return list(self.names)


def pixels(dtype: torch.dtype = torch.uint8, size: int = 8, channels: int = 1) -> Tensor:
    return torch.ones(4, channels, size, size).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool])
def test_only_uint8_is_accepted_wherever_images_enter(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"MemoryDataset's images must be a uint8 tensor .* got {name} \(4, 1, 8, 8\)"):
        MemoryDataset(pixels(dtype), NONE)
    data = ImageDataModule(Mine(Stored(pixels(dtype))))
    for split in ("train", "held_out"):
        with pytest.raises(UserError, match=rf"the images of Mine \(.*test_floats.py:\d+\) must be .* got {name}"):
            getattr(data, split)
    with pytest.raises(UserError, match=f"images must be uint8 with values 0..255, got {name}"):
        to_float(pixels(dtype))
    with pytest.raises(UserError, match=f"must be uint8 .* got {name}"):
        data.on_after_batch_transfer([pixels(dtype), NONE], 0)


@pytest.mark.parametrize(
    ("opened", "names", "message"),
    [
        (
            TensorDataset(torch.rand(4, 1, 8, 8), NONE),
            (),
            "Mine (FILE) .open must return an ImageDataset",
        ),
        ([(torch.rand(1, 8, 8), 0)] * 4, (), "must return an ImageDataset, got list"),
        (Stored(pixels(size=9)), (), "declares images of 1x8x8 (channels x height x width) and has 1x9x9"),
        (Stored(pixels(channels=3)), (), "declares images of 1x8x8 (channels x height x width) and has 3x8x8"),
        (Stored(pixels()[:, 0]), (), "must be a uint8 tensor (n, channels, height, width)"),
        (Stored(pixels(), torch.tensor([0, 1, 2, 3])), ("a", "b"), "the label 3 and 2 class names: labels lie in 0..1"),
        (Stored(pixels(), torch.tensor([0, 1, 2, -2])), ("a", "b", "c"), "the label -2 and 3 class names"),
        (Stored(pixels(), torch.tensor([0, 1, 0, 1])), (), "the label 1 and no class names"),
    ],
)
def test_what_a_source_opens_is_checked_before_its_use(opened: object, names: Sequence[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        _ = ImageDataModule(Mine(opened, names)).train
    assert message.replace(" (FILE) ", "") in re.sub(r" \(/\S+\.py:\d+\)", "", str(refused.value))


def test_a_source_without_shape_is_refused_by_name() -> None:
    class Shapeless(ImageSource):
        prepare = open = image_files = class_names = lambda *_: None  # type: ignore[assignment]

    with pytest.raises(UserError, match=r"Shapeless \(.*\) needs an int attribute 'channels', .* got None; set it in"):
        ImageDataModule(Shapeless())


def test_labels_of_another_number_than_the_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"one label for each of its 4 images, got \(3,\)"):
        MemoryDataset(pixels(), NONE[:3])


@pytest.mark.parametrize(("mode", "suffix"), [("F", ".tiff"), ("I", ".tiff")])
def test_32_bit_files_are_refused_before_any_is_decoded(mode: str, suffix: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new(mode, (8, 8)).save(tmp_path / f"b{suffix}")
    with pytest.raises(UserError, match=rf"(?s)1 of the 2 images .*b{suffix}: 32-bit pixels \(mode {mode}\) have no"):
        open_sample_folder(tmp_path)


def test_16_bit_files_are_their_high_bytes(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x1234, dtype=np.uint16)).save(tmp_path / "a.png")
    assert open_sample_folder(tmp_path)[0][0].unique().tolist() == [0x12]


def test_float_arrays_of_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", np.random.default_rng(0).random((4, 8, 8, 1)))
    with pytest.raises(UserError, match=r"arr_0 is float64 of shape \(4, 8, 8, 1\); expected uint8"):
        open_npz_samples(tmp_path / "samples.npz")
