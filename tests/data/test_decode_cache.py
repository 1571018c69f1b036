"""Images are decoded once, into memory or a mapped file, and keep their fingerprint."""

import multiprocessing
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import ImageDataModule, ImageDataset, ImageFolder, MemoryDataset, datasets, decode_cache
from lightning_ddpm.data.datasets import FileDataset
from lightning_ddpm.data.decode_cache import MappedDataset, decode_to_file, decode_to_memory
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import write_atomically


def everything(data: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    return data.__getitems__(range(len(data)))


def write_image(path: Path, seed: int = 0, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write five training images of two classes and one held out."""
    for i in range(5):
        write_image(tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png", i, 12)
    write_image(tmp_path / "images" / "test" / "a" / "5.png", 5, 12)
    return tmp_path / "images"


def open_training_images(root: Path, folder: Path | None = None, size: int = 8, channels: int = 3) -> ImageDataset:
    """Open the training images as a run does."""
    data = ImageDataModule(ImageFolder(channels, size, holdout=0.5), str(root), decode_cache=folder and str(folder))
    data.prepare_data()
    return data.train


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", 5 * 3 * 8 * 8 - 1)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of decoded files."""
    names: list[str] = []
    read = datasets.read_image

    def spy(file, channels, size):  # type: ignore[no-untyped-def]
        names.append(file.name)
        return read(file, channels, size)

    monkeypatch.setattr(datasets, "read_image", spy)
    return names


def test_images_are_equal_in_memory_in_a_mapped_file_and_decoded_at_every_access(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_training_images(root, tmp_path / "decoded")
    assert isinstance(kept, MemoryDataset)
    assert not (tmp_path / "decoded").exists()
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", 5 * 3 * 8 * 8 - 1)
    read, mapped = open_training_images(root), open_training_images(root, tmp_path / "decoded")
    assert isinstance(read, FileDataset)
    assert isinstance(mapped, MappedDataset)
    assert mapped.fingerprint == read.fingerprint
    for other in (read, mapped):
        assert torch.equal(everything(kept)[0], everything(other)[0])
        assert torch.equal(everything(kept)[1], everything(other)[1])
        assert torch.equal(kept[3][0], other[3][0])
        assert kept[3][1] == other[3][1]


@pytest.mark.usefixtures("too_large")
def test_a_dataset_is_decoded_once_and_again_after_a_change(root: Path, tmp_path: Path, opens: list[str]) -> None:
    folder = tmp_path / "decoded"
    open_training_images(root, folder)
    (file,) = folder.iterdir()
    assert np.load(file).shape == (5, 3, 8, 8)
    opens.clear()
    everything(open_training_images(root, folder))
    assert opens == []
    write_image(root / "train" / "a" / "0.png", 9, 13)
    new = open_training_images(root, folder)
    assert "0.png" in opens
    assert torch.equal(everything(new)[0], everything(open_training_images(root))[0])
    assert len(list(folder.iterdir())) == 2


@pytest.mark.usefixtures("too_large")
@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_file_is_written_again(damage: str, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "decoded"
    whole = everything(open_training_images(root, folder))[0]
    (file,) = folder.iterdir()
    if damage == "other":
        np.save(file, np.zeros((5, 3, 8, 9), np.uint8))
    else:
        file.write_bytes(file.read_bytes()[: 500 if damage == "cut" else 0])
    assert torch.equal(everything(open_training_images(root, folder))[0], whole)


@pytest.mark.usefixtures("too_large")
def test_a_mapped_dataset_is_pickled_as_its_path(root: Path, tmp_path: Path) -> None:
    mapped = open_training_images(root, tmp_path / "decoded")
    assert isinstance(mapped, MappedDataset)
    assert len(pickle.dumps(mapped)) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        images, labels = pool.apply(mapped.__getitems__, ([4, 0],))
    assert torch.equal(images, everything(mapped)[0][[4, 0]])
    assert labels.tolist() == [1, 0]


@pytest.mark.usefixtures("too_large")
@pytest.mark.parametrize("where", ["file", "file/below", "full"])
def test_a_run_goes_on_without_a_folder_that_cannot_be_used(
    where: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    expected = everything(open_training_images(root))[0]
    if where == "full":

        def fill(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fill)
    capsys.readouterr()
    for _ in range(2):
        data = open_training_images(root, tmp_path / where)
        assert isinstance(data, FileDataset)
        assert torch.equal(everything(data)[0], expected)
    assert capsys.readouterr().out.count(f"going on without the cache {tmp_path / where} (") == 1, "once in a process"
    assert where != "full" or os.listdir(tmp_path / where) == []


@pytest.mark.usefixtures("too_large")
def test_a_dataset_that_is_larger_than_the_disk_is_decoded_at_every_access(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = FileDataset(["x"] * 10, lambda index: Path("x"), torch.zeros(10), 3, 10**7, "")
    assert decode_to_file(data, tmp_path, "x") is data
    assert re.search(r"the decoded datasets take 3,000,000,000 MB and .* has .* MB left", capsys.readouterr().out)


@pytest.mark.usefixtures("too_large")
def test_any_changed_bit_of_the_file_is_noticed(root: Path, tmp_path: Path) -> None:
    """In the header, a pixel, a sum or the digest: at the start, or at the latest when its image is used."""
    folder = tmp_path / "decoded"
    whole = everything(open_training_images(root, folder))[0]
    (file,) = folder.iterdir()
    content = file.read_bytes()
    data = ImageFolder(3, 8, holdout=0.5).open(root, "train")
    assert isinstance(data, FileDataset)
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            everything(MappedDataset(file, (5, 3, 8, 8), data.labels, data.fingerprint))
    assert torch.equal(everything(open_training_images(root, folder))[0], whole)
    assert file.read_bytes() == content


@pytest.mark.usefixtures("too_large")
def test_a_file_that_changes_beyond_the_sample_is_an_error_at_its_image(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_COMPARED", 192)
    folder = tmp_path / "decoded"
    open_training_images(root, folder)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[128 + 192 + 5] ^= 1
    file.write_bytes(content)
    data = open_training_images(root, folder)
    data[0]
    with pytest.raises(UserError, match=r"image 1 of the decoded images in .* is damaged; delete that file"):
        data[1]


@pytest.mark.usefixtures("too_large")
def test_the_leftovers_of_a_killed_run_are_removed_and_those_of_a_live_one_are_kept(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "decoded"
    child = os.fork()
    if child == 0:
        write_atomically(folder / "killed.npy", lambda file: os._exit(9))
    os.waitpid(child, 0)
    (left,) = folder.iterdir()

    def write(file: BinaryIO) -> None:
        open_training_images(root, folder)
        assert not left.exists()
        assert Path(file.name).exists()

    write_atomically(folder / "live.npy", write)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.usefixtures("too_large")
def test_an_image_that_changes_with_its_date_restored_is_decoded_again(root: Path, tmp_path: Path) -> None:
    for each in (root / "train").rglob("*.png"):
        Image.open(each).save(each.with_suffix(".bmp"))  # whose size does not depend on its pixels
        each.unlink()
    open_training_images(root, tmp_path / "decoded")
    changed = root / "train" / "a" / "0.bmp"
    stat = changed.stat()
    Image.new("RGB", (12, 12), "red").save(changed)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert open_training_images(root, tmp_path / "decoded")[0][0][:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "in a file"])
def test_an_image_damaged_after_the_check_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", memory)
    files = ImageFolder(size=8).open(root, "train")
    assert isinstance(files, FileDataset)
    bad = root / "train" / "b" / "3.png"
    bad.write_bytes(bad.read_bytes()[:80])
    with pytest.raises(UserError, match=r"b/3\.png: the image cannot be read"):
        decode_to_memory(files, "") if memory else decode_to_file(files, tmp_path / "decoded", "")


# fingerprints


def get_fingerprint(root: Path, size: int = 8, channels: int = 3) -> str:
    return open_training_images(root, size=size, channels=channels).fingerprint


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "in files"])
def test_the_fingerprint_identifies_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", memory)
    for i in range(4):
        write_image(tmp_path / f"{i}.png", i, 16)
    first = get_fingerprint(tmp_path)
    assert first == get_fingerprint(tmp_path)
    assert first != get_fingerprint(tmp_path, size=16)
    assert first != get_fingerprint(tmp_path, channels=1)
    write_image(tmp_path / "4.png", 4, 16)
    assert get_fingerprint(tmp_path) != first


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "in files"])
def test_the_fingerprint_changes_with_the_content_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", memory)
    for i in range(4):
        write_image(tmp_path / f"{i}.png", i)
    first = get_fingerprint(tmp_path)
    write_image(tmp_path / "0.png", 9)
    assert get_fingerprint(tmp_path) != first


def test_another_dataset_at_the_same_relative_path_has_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", 0)
    found = set()
    for home in ("first", "second"):
        for i in range(2):
            write_image(tmp_path / home / "data" / f"{i}.png", 10 * i + len(home))
        monkeypatch.chdir(tmp_path / home)
        found.add(get_fingerprint(Path("data")))
    assert len(found) == 2


def test_a_moved_dataset_in_memory_keeps_its_fingerprint(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / "here" / f"{i}.png", i)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert get_fingerprint(tmp_path / "here") == get_fingerprint(tmp_path / "there")
