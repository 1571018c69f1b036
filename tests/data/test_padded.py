"""Images are put into the center of larger ones, whatever they are stored in."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import (
    ArrayFile,
    ArrayFolder,
    Described,
    Digits,
    ImageDataModule,
    ImageFolder,
    MemoryDataset,
    Padded,
)
from lightning_ddpm.data.decode_cache import MappedDataset
from lightning_ddpm.data.padded import PaddedDataset
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.utils.errors import UserError


def test_digits_stand_in_the_center_on_black(tmp_path) -> None:
    data = ImageDataModule(Padded(Digits(), (16, 11)), root=str(tmp_path))
    plain = Digits().open(tmp_path, "train")
    images, labels = data.train.__getitems__(range(50))
    assert (data.image_shape, images.shape[1:], data.class_names()[:2]) == ((1, 16, 11), (1, 16, 11), ["0", "1"])
    assert torch.equal(images[:, :, 4:12, 1:9], plain.__getitems__(range(50))[0])
    assert int(images.sum()) == int(plain.__getitems__(range(50))[0].sum())
    assert torch.equal(labels, plain.labels[:50])
    batched = PaddedDataset(plain, (16, 11), UINT8)
    assert torch.equal(batched.__getitems__(range(50))[0], images)
    assert batched.fingerprint != plain.fingerprint


def test_unbounded_values_have_a_border_of_their_mean(tmp_path) -> None:
    for index in range(4):
        np.save(tmp_path / f"{index}.npy", np.random.default_rng(index).normal([[[5]], [[-70]]], 2, (2, 4, 4)))
    data = ImageDataModule(Padded(ArrayFolder(holdout=0.3), 8), root=str(tmp_path))
    assert isinstance(data.train, MemoryDataset)
    x_0, _ = data.on_after_batch_transfer(data.train.__getitems__([0]), 0)
    assert x_0.shape == (1, 2, 8, 8)
    torch.testing.assert_close(x_0[:, :, :2], torch.zeros(1, 2, 2, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_with_conditions_are_padded_inside_and_outside(in_memory, tmp_path, monkeypatch) -> None:
    if not in_memory:
        monkeypatch.setattr("lightning_ddpm.data.array_files.MAX_BYTES_IN_MEMORY", 0)
    np.save(tmp_path / "train.npy", np.arange(8, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2))
    (tmp_path / "conditions.csv").write_text("number\n" + "\n".join(map(str, range(8))))
    outside = Padded(Described(ArrayFile(holdout=0.25), ["number"]), 6)
    inside = Described(Padded(ArrayFile(holdout=0.25), 6), ["number"])
    for source in (outside, inside):
        data = ImageDataModule(source, root=str(tmp_path))
        data.prepare_data()
        for part in (data.train, data.held_out):
            images, condition = part.__getitems__(range(len(part)))
            assert images.shape[1:] == (1, 6, 6)
            assert torch.equal(condition.vector[:, 0], images[:, 0, 2, 2].float())
            assert int(images[:, 0, 0].sum()) == 0


def test_the_images_of_a_folder_are_decoded_once_and_padded(tmp_path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    source, decoded = Padded(ImageFolder(1, 8, holdout=0.25), 12), tmp_path / "decoded"
    for kind, most in ((MemoryDataset, 2**30), (MappedDataset, 0)):
        monkeypatch.setattr("lightning_ddpm.data.decode_cache.MAX_BYTES_IN_MEMORY", most)
        data = ImageDataModule(source, root=str(tmp_path / "images"), decode_cache=str(decoded))
        data.prepare_data()
        assert isinstance(data.train, PaddedDataset)
        assert type(data.train.data) is kind
        expected = source.open(tmp_path / "images", "train").__getitems__(range(3))[0]
        assert torch.equal(data.train.__getitems__(range(3))[0], expected)


def test_a_smaller_size_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"images of 8x8 cannot be padded to 8x7; raise data\.source\.size"):
        ImageDataModule(Padded(Digits(), (8, 7)), root=str(tmp_path))
