"""Sources open every image with its exact pixels and label, and report missing or unusable files."""

import hashlib
import io
import os
import pickle
import string
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.tiny import real_data
from PIL import Image
from sklearn.datasets import load_digits

from lightning_ddpm.data import CIFAR10, LSUN, MNIST, CelebA, Digits, FashionMNIST, ImageFolder
from lightning_ddpm.data.datasets import ImageDataset, MemoryDataset
from lightning_ddpm.data.sources import ImageSource
from lightning_ddpm.utils.errors import UserError


def everything(data: ImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    return data.__getitems__(range(len(data)))


def test_images_in_memory_are_contiguous_whatever_their_layout_was() -> None:
    rows_of_pixels = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).to(torch.uint8)
    images = rows_of_pixels.permute(0, 3, 1, 2)
    batch, _ = everything(MemoryDataset(images, torch.zeros(2)))
    assert torch.equal(batch, images)
    assert batch.is_contiguous(), "the network's activations would inherit the layout"


def write_image(path: Path, colour: Any = 128, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write an image of one colour and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if isinstance(colour, tuple) or mode != "RGB" else (colour,) * 3).save(path)
    return path


def read_gray_levels(data: ImageDataset) -> list[int]:
    """Return the only gray level of each image."""
    images = everything(data)[0]
    assert all(len(image.unique()) == 1 for image in images)
    return [int(image.flatten()[0]) for image in images]


# digits


def test_the_two_splits_of_digits_hold_each_of_scikit_learn_s_images_once() -> None:
    train, test = (Digits().open(Path("unused"), split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    real = np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1)
    ours = torch.cat([everything(train)[0], everything(test)[0]]).flatten(1).numpy()
    assert ours.dtype == np.uint8
    assert sorted(map(bytes, ours)) == sorted(map(bytes, real))


def test_every_tenth_digit_is_held_out_with_its_label() -> None:
    train, test = (everything(Digits().open(Path("unused"), split)) for split in ("train", "test"))
    digits = load_digits()
    assert np.array_equal(test[0][:, 0], np.round(digits.images[9::10] * 255 / 16))
    assert np.array_equal(test[1], digits.target[9::10])
    assert np.array_equal(train[1][:12], np.delete(digits.target, np.s_[9::10])[:12])
    assert set(train[1].tolist()) == set(test[1].tolist()) == set(range(10))
    assert train[1].dtype == torch.int64
    assert Digits().class_names(Path("unused")) == list("0123456789")


# MNIST and Fashion-MNIST


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in the format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.mark.parametrize("source", [MNIST(), FashionMNIST()], ids=["MNIST", "FashionMNIST"])
def test_idx_files_are_read_exactly(tmp_path: Path, source: ImageSource) -> None:
    generator = np.random.default_rng(0)
    for part, n in ("train", 7), ("t10k", 3):
        raw = tmp_path / type(source).__name__ / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", generator.integers(0, 256, (n, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", generator.integers(0, 10, n, np.uint8))
    source.prepare(tmp_path)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images, labels = everything(source.open(tmp_path, split))
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert np.array_equal(images[:, 0], generator.integers(0, 256, (len(images), 28, 28), np.uint8))
        assert np.array_equal(labels, generator.integers(0, 10, len(labels), np.uint8))
    assert len(source.class_names(tmp_path)) == 10


@pytest.mark.parametrize(
    ("source", "mean"), [(MNIST(), 0.1307), (FashionMNIST(), 0.2860)], ids=["MNIST", "FashionMNIST"]
)
def test_the_real_datasets_have_their_published_counts_and_means(source: ImageSource, mean: float) -> None:
    root = real_data(type(source).__name__).parent
    source.prepare(root)
    train, test = source.open(root, "train"), source.open(root, "test")
    images, labels = everything(train)
    assert images.shape == (60000, 1, 28, 28)
    assert len(test) == 10000
    assert images.float().mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "source",
    [MNIST(), FashionMNIST(), CIFAR10(), CelebA(), LSUN("church_outdoor"), LSUN("cat")],
    ids=lambda source: type(source).__name__,
)
def test_missing_data_that_cannot_be_downloaded_are_reported_with_their_place(
    tmp_path: Path, source: ImageSource
) -> None:
    with pytest.raises(UserError, match=r"(?s)could not be downloaded .* put it there .* --data\.root") as error:
        source.prepare(tmp_path)
    assert type(source).__name__ in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_cifar10_batches_are_read_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = {name: generator.integers(0, 256, (4, 3072), np.uint8) for name in ["test_batch"]}
    pixels |= {f"data_batch_{i}": generator.integers(0, 256, (4, 3072), np.uint8) for i in range(1, 6)}

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    written = {name: write(name, {"data": data, "labels": [1, 2, 3, 9]}) for name, data in pixels.items()}
    meta = write("batches.meta", {"label_names": CIFAR10().class_names(tmp_path)})
    # torchvision checks the hashes of the published files: replace them by those of the written files
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [written[f"data_batch_{i}"] for i in range(1, 6)])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [written["test_batch"]])
    entry = {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", entry)

    CIFAR10().prepare(tmp_path)
    images, labels = everything(CIFAR10().open(tmp_path, "train"))
    assert np.array_equal(images.flatten(1)[4:8], pixels["data_batch_2"])
    assert labels.tolist() == [1, 2, 3, 9] * 5
    assert np.array_equal(everything(CIFAR10().open(tmp_path, "test"))[0].flatten(1), pixels["test_batch"])


# CelebA


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write five images in torchvision's layout, in partitions 0, 0, 1, 1, 2; torchvision accepts their hashes."""
    folder = tmp_path / "celeba"
    names = [f"{i:06d}.png" for i in range(1, 6)]
    for i, name in enumerate(names):
        face = Image.new("RGB", (178, 218), (255, 0, 0))
        face.paste((40 * i,) * 3, (0, 20, 178, 198))  # the center 178x178; red above and below
        (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
        face.save(folder / "img_align_celeba" / name)
    tables = {
        "list_eval_partition.txt": [f"{name} {part}" for name, part in zip(names, [0, 0, 1, 1, 2], strict=True)],
        "identity_CelebA.txt": [f"{name} 1" for name in names],
    }
    for table in ("list_attr_celeba.txt", "list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        tables[table] = ["5", "first second", *(f"{name} 1 -1" for name in names)]
    listed = [("", "", "img_align_celeba.zip")]
    for table, rows in tables.items():
        (folder / table).write_text("\n".join(rows) + "\n")
        listed.append(("", hashlib.md5((folder / table).read_bytes()).hexdigest(), table))
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", listed)
    return tmp_path


def test_celeba_is_the_center_square_of_each_image_of_the_right_partition(celeba: Path) -> None:
    source = CelebA(size=178)
    source.prepare(celeba)
    train, test = source.open(celeba, "train"), source.open(celeba, "test")
    assert read_gray_levels(train) == [0, 40]
    assert read_gray_levels(test) == [80, 120]
    images, labels = everything(train)
    assert images.shape == (2, 3, 178, 178)
    assert labels.tolist() == [-1, -1]
    assert source.class_names(celeba) == []


def test_a_size_larger_than_celeba_s_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"178 pixels wide: size must lie in \[1, 178\], got 179"):
        CelebA(size=179)


# LSUN


def write_lmdb(folder: Path, colours: list[tuple[int, int, int]], size: tuple[int, int]) -> None:
    """Write an LMDB like LSUN's: keys in order, and the bytes of image files as values."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for i, colour in enumerate(colours):
            buffer = io.BytesIO()
            Image.new("RGB", size, colour).save(buffer, "PNG")
            transaction.put(f"{i:08d}".encode(), buffer.getvalue())


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder."""
    folder = tmp_path / "empty_folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def church(tmp_path: Path) -> Path:
    """Write an LSUN category with three training images and two held out."""
    write_lmdb(tmp_path / "church_outdoor_train_lmdb", [(10, 20, 30), (40, 50, 60), (70, 80, 90)], (16, 12))
    write_lmdb(tmp_path / "church_outdoor_val_lmdb", [(1, 1, 1), (2, 2, 2)], (12, 16))
    return tmp_path


@pytest.mark.usefixtures("empty_folder", "offline")
def test_lsun_s_scenes_are_read_from_their_two_databases(church: Path) -> None:
    source = LSUN("church_outdoor", size=8)
    source.prepare(church)
    images, labels = everything(source.open(church, "train"))
    assert images.shape == (3, 3, 8, 8)
    assert images.amax((2, 3)).tolist() == images.amin((2, 3)).tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert labels.tolist() == [-1, -1, -1]
    assert read_gray_levels(source.open(church, "test")) == [1, 2]
    assert source.class_names(church) == []


@pytest.mark.usefixtures("empty_folder", "offline")
def test_every_thousandth_image_of_lsun_s_objects_is_held_out(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "cat", [(i // 256, i % 256, 7) for i in range(2005)], (8, 8))
    source = LSUN("cat", size=8)
    source.prepare(tmp_path)
    train, test = source.open(tmp_path, "train"), source.open(tmp_path, "test")
    numbers = [
        everything(part)[0][:, :2, 0, 0].int() @ torch.tensor([256, 1], dtype=torch.int) for part in (train, test)
    ]
    assert numbers[1].tolist() == [999, 1999]
    assert sorted(torch.cat(numbers).tolist()) == list(range(2005))


@pytest.mark.usefixtures("church")
def test_reading_lsun_writes_nothing_to_the_current_folder(church: Path, empty_folder: Path) -> None:
    LSUN("church_outdoor", size=8).open(church, "train")
    assert os.listdir(empty_folder) == []


class Malice:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it ran",)


def test_reading_lsun_loads_no_pickle_from_the_current_folder(church: Path, empty_folder: Path) -> None:
    letters = "".join(c for c in str(church / "church_outdoor_train_lmdb") if c in string.ascii_letters)
    (empty_folder / f"_cache_{letters}").write_bytes(pickle.dumps(Malice()))
    LSUN("church_outdoor", size=8).open(church, "train")
    assert not (empty_folder / "it ran").exists()


@pytest.mark.usefixtures("empty_folder")
def test_databases_whose_paths_differ_only_by_digits_are_not_confused(tmp_path: Path) -> None:
    for root, key in ("1", "a"), ("2", "b"):
        lmdb = pytest.importorskip("lmdb")
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (int(root),) * 3).save(buffer, "PNG")
        folder = tmp_path / root / "church_outdoor_train_lmdb"
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=2**20) as environment, environment.begin(write=True) as transaction:
            transaction.put(key.encode(), buffer.getvalue())
    for root in ("1", "2"):
        assert read_gray_levels(LSUN("church_outdoor", size=8).open(tmp_path / root, "train")) == [int(root)]


# folders of images


def test_all_subfolders_are_read_and_the_first_level_gives_the_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "root.png", 1)
    write_image(tmp_path / "dog" / "a.jpg", 2)
    write_image(tmp_path / "cat" / "deep" / "er" / "b.bmp", 3)
    write_image(tmp_path / "cat" / "c.PNG", 4)
    source = ImageFolder(size=8, holdout=0.25)
    source.prepare(tmp_path)
    assert source.class_names(tmp_path) == ["cat", "dog"]
    found = {}
    for split in ("train", "test"):
        data = source.open(tmp_path, split)
        found |= dict(zip(read_gray_levels(data), everything(data)[1].tolist(), strict=True))
    assert found == {1: -1, 2: 1, 3: 0, 4: 0}


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_the_two_splits(tmp_path: Path, held_out: str) -> None:
    write_image(tmp_path / "train" / "cat" / "a.png", 1)
    write_image(tmp_path / "train" / "dog" / "b.png", 2)
    write_image(tmp_path / held_out / "dog" / "c.png", 3)
    write_image(tmp_path / held_out / "newt" / "d.png", 4)
    source = ImageFolder(size=8)
    source.prepare(tmp_path)
    train, test = source.open(tmp_path, "train"), source.open(tmp_path, "test")
    assert source.class_names(tmp_path) == ["cat", "dog"]
    assert read_gray_levels(train) == [1, 2]
    assert everything(train)[1].tolist() == [0, 1]
    assert read_gray_levels(test) == [3, 4]
    assert everything(test)[1].tolist() == [1, -1], "newts are no class of the training set"


@pytest.mark.parametrize(("holdout", "held"), [(0.02, 2), (0.1, 10), (0.5, 50)])
def test_the_splits_are_disjoint_and_hold_all_images(tmp_path: Path, holdout: float, held: int) -> None:
    for i in range(100):
        write_image(tmp_path / f"{i:03d}.png", i)
    source = ImageFolder(size=8, holdout=holdout)
    train, test = read_gray_levels(source.open(tmp_path, "train")), read_gray_levels(source.open(tmp_path, "test"))
    assert len(test) == held
    assert sorted(train + test) == list(range(100))
    assert max(np.diff(test)) == 100 // held, "spread evenly"


@pytest.mark.parametrize("n", [2, 3, 49])
def test_each_split_of_a_small_folder_has_an_image(tmp_path: Path, n: int) -> None:
    for i in range(n):
        write_image(tmp_path / f"{i:03d}.png", i)
    source = ImageFolder(size=8)
    train, test = read_gray_levels(source.open(tmp_path, "train")), read_gray_levels(source.open(tmp_path, "test"))
    assert train
    assert test
    assert sorted(train + test) == list(range(n))


def test_a_single_image_is_refused_because_a_split_is_empty(tmp_path: Path) -> None:
    write_image(tmp_path / "only.png")
    source = ImageFolder(size=8)
    source.prepare(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        _ = [source.open(tmp_path, "train"), source.open(tmp_path, "test")]


def test_hidden_files_and_folders_and_other_files_are_skipped(tmp_path: Path) -> None:
    for i, name in enumerate(["a.png", ".b.png", ".cache/c.png", "d/.e/f.png", "._a.png", "g.png"]):
        write_image(tmp_path / name, i)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    source = ImageFolder(size=8, holdout=0.5)
    source.prepare(tmp_path)
    assert read_gray_levels(source.open(tmp_path, "train")) + read_gray_levels(source.open(tmp_path, "test")) == [0, 5]


def test_images_below_a_hidden_parent_of_the_root_are_read(tmp_path: Path) -> None:
    root = tmp_path / ".hidden" / "mine"
    write_image(root / "a.png", 1)
    write_image(root / "b.png", 2)
    source = ImageFolder(size=8, holdout=0.5)
    source.prepare(root)
    assert read_gray_levels(source.open(root, "train")) == [1]


def test_images_become_grayscale_or_rgb_as_configured(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "colour.png", (200, 100, 0))
    write_image(tmp_path / "train" / "gray.png", 77, mode="L")
    write_image(tmp_path / "test" / "gray.png", 77, mode="L")
    rgb = everything(ImageFolder(channels=3, size=8).open(tmp_path, "train"))[0]
    assert rgb[:, :, 0, 0].tolist() == [[200, 100, 0], [77, 77, 77]]
    gray = everything(ImageFolder(channels=1, size=8).open(tmp_path, "train"))[0]
    assert gray[:, :, 0, 0].tolist() == [[round(0.299 * 200 + 0.587 * 100)], [77]]


def test_images_are_resized_by_the_short_side_and_center_cropped(tmp_path: Path) -> None:
    wide = Image.new("RGB", (48, 16), (255, 0, 0))
    wide.paste((9, 9, 9), (16, 0, 32, 16))
    for name in ("a.png", "b.png"):
        wide.save(tmp_path / name)
        wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"tall {name}")
    exact = everything(ImageFolder(size=16, holdout=0.25).open(tmp_path, "train"))[0]
    assert exact.unique().tolist() == [9], "only the center square is left, without resizing"
    half = everything(ImageFolder(size=8, holdout=0.25).open(tmp_path, "train"))[0]
    assert half.shape == (3, 3, 8, 8)
    assert half[..., 2:6, 2:6].unique().tolist() == [9]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; point data\.root"):
        ImageFolder(size=8).prepare(tmp_path / "nowhere")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(UserError, match=r"holds no images \(\.jpg, .*\), nor do its subfolders; check data\.root"):
        ImageFolder(size=8).prepare(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(
        UserError, match=r"1 of the 1 images .*\n.*broken\.png: the file is not an image in a supported format"
    ):
        ImageFolder(size=8).prepare(tmp_path)


def test_all_unusable_images_are_named_at_once(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"good{i}.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    write_image(tmp_path / "small.png", size=(20, 7))
    with pytest.raises(UserError) as error:
        ImageFolder(size=8).prepare(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"3 of the 7 images in {tmp_path}")
    assert [Path(line.split(": ")[0]).name for line in lines[1:-1]] == ["empty.png", "small.png", "text.jpg"]
    assert lines[1].endswith("the file is empty")
    assert "20x7, less than 8x8; lower data.source.size" in lines[2]
    assert "skip them with --data.source.on_error skip" in lines[-1]


def test_the_first_ten_of_many_faults_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    for i in range(25):
        (tmp_path / f"{i:02d}.png").touch()
    with pytest.raises(UserError, match=r"25 of the 25 images(.|\n)*09\.png(.|\n)*and 15 more"):
        ImageFolder(size=8).prepare(tmp_path)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.png: the image cannot be read: image file is truncated"):
        ImageFolder(size=8, holdout=0.5).open(tmp_path, "train")


def test_channels_that_the_files_do_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="channels must be at least 1, got 0"):
        ImageFolder(channels=0)
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png: it has 3 channels, expected 4; set data.source.channels"):
        ImageFolder(channels=4, size=8).prepare(tmp_path)


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, float("nan")])
def test_a_holdout_outside_0_to_1_is_refused(holdout: float) -> None:
    with pytest.raises(UserError, match=r"holdout must lie in \(0, 1\)"):
        ImageFolder(holdout=holdout)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("kept", [0, 3, 10, -1])
def test_a_file_of_mnist_that_is_cut_off_is_named(tmp_path: Path, name: str, kept: int) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 5), ("t10k", 3)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((n, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.zeros(n, np.uint8))
    (raw / name).write_bytes((raw / name).read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{raw / name} is damaged; delete it, so that it is downloaded again"):
        MNIST().prepare(tmp_path)


@pytest.mark.parametrize("category", ["church", "../bedroom", "", "Bedroom", "bedroom_train_lmdb"])
def test_a_category_that_lsun_does_not_have_is_refused_with_those_it_has(category: str) -> None:
    with pytest.raises(UserError, match=r"LSUN has no category .*; it has bedroom, bridge, church_outdoor, .*, cat, "):
        LSUN(category)
