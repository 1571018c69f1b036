"""Datasets of Hugging Face are read from local Parquet files, without a network."""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import HuggingFace, ImageDataModule
from lightning_ddpm.utils.errors import UserError

datasets = pytest.importorskip("datasets")
N = 20
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), np.uint8)


def encode(pixels: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(folder: Path, split: str, labels: list, feature, images=None) -> None:
    rows = {"image": images or [encode(each) for each in IMAGES[: len(labels)]], "kind": labels}
    features = datasets.Features({"image": datasets.Image(), "kind": feature})
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cats")
    write(folder, "train", [i % 2 for i in range(N)], datasets.ClassLabel(names=["cat", "dog"]))
    write(folder, "test", [1, 0, -1], datasets.ClassLabel(names=["cat", "dog"]))
    return folder


def test_images_and_classes_are_those_of_the_parquet_files(folder: Path, tmp_path: Path) -> None:
    source = HuggingFace(str(folder), label="kind", held_out="test", size=8)
    source.prepare(tmp_path)
    assert source.class_names(tmp_path) == ["cat", "dog"]
    train, test = source.open(tmp_path, "train"), source.open(tmp_path, "test")
    images, labels = train.__getitems__(range(N))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), IMAGES)
    assert labels.tolist() == [i % 2 for i in range(N)]
    assert (len(test), test.labels.tolist()) == (3, [1, 0, -1])
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301
    assert torch.equal(copy.__getitems__([3])[0], images[3:4])
    assert len(pickle.dumps(train)) < N * 2000  # the files are mapped by a worker, and not sent to it
    assert train.fingerprint != test.fingerprint


def test_a_fraction_is_held_out_of_the_only_split(folder: Path, tmp_path: Path) -> None:
    data = ImageDataModule(HuggingFace(str(folder), size=8, channels=1, holdout=0.25), root=str(tmp_path))
    data.prepare_data()
    assert (len(data.train), len(data.held_out)) == (15, 5)
    assert data.class_names() == []


def test_classes_without_names_are_their_values(tmp_path: Path) -> None:
    write(tmp_path / "data", "train", ["b", "a", "b"], datasets.Value("string"))
    source = HuggingFace(str(tmp_path / "data"), label="kind", size=8, holdout=0.3)
    assert source.class_names(tmp_path) == ["a", "b"]
    assert source.open(tmp_path, "train").labels.tolist() == [1, 0]


def test_missing_classes_are_no_label_and_lists_of_them_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", "train", ["b", None, "a", "b"], datasets.Value("string"))
    source = HuggingFace(str(tmp_path / "data"), label="kind", size=8, holdout=0.3)
    assert source.class_names(tmp_path) == ["a", "b"]
    assert source.open(tmp_path, "train").labels.tolist() == [1, -1, 0]
    write(tmp_path / "lists", "train", [[0, 1], [1]], datasets.Sequence(datasets.Value("int64")))
    with pytest.raises(UserError, match=r"the column kind of .*lists holds more than a class of each image; set data"):
        HuggingFace(str(tmp_path / "lists"), label="kind", size=8).prepare(tmp_path)


def test_a_folder_may_be_in_the_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(HuggingFace(f"~/{folder.name}", size=8, holdout=0.25).open(tmp_path, "train")) == 15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "picture"}, "has no column picture; it has image, kind: set data.source.image"),
        ({"image": "kind"}, "the column kind of .* holds no images"),
        ({"label": "class"}, "has no column class"),
        ({"held_out": "validation"}, "cannot be loaded from the folder, split validation"),
        ({"size": 9}, r"row 0 of .*\[train\]: the image is 8x8, less than 9x9"),
        ({"channels": 2}, "channels must be 1"),
        ({"held_out": "train"}, r"train is both data\.source\.train and held_out; name another split"),
        ({"holdout": 0.0}, r"holdout must lie in \(0, 1\)"),
    ],
)
def test_what_cannot_be_read_is_refused_before_training(settings, message, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        HuggingFace(**({"name": str(folder), "size": 8} | settings)).prepare(tmp_path)


def test_files_that_rows_name_are_read_in_the_folder_of_the_dataset_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "own.png", tmp_path / "private.png"
    inside.parent.mkdir()
    for path, pixels in zip((inside, outside), IMAGES, strict=False):
        Image.fromarray(pixels).save(path)
    (inside.parent / "link.png").symlink_to(outside)
    for name, refused in ((inside, False), (outside, True), (inside.parent / "link.png", True)):
        rows = [encode(IMAGES[0]), {"bytes": None, "path": str(name)}]
        write(tmp_path / "data", "train", [0, 0], datasets.Value("int64"), rows)
        source = HuggingFace(str(tmp_path / "data"), size=8, holdout=0.5)
        if refused:
            with pytest.raises(UserError, match=rf"row 1 of .*: it names the file {name}, outside .*data; files of"):
                source.prepare(tmp_path / "root")
        else:
            source.prepare(tmp_path / "root")
            pixels = source.open(tmp_path / "root", "test")[0][0]
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), IMAGES[0])


def test_a_folder_of_image_files_is_a_dataset(tmp_path: Path) -> None:
    for index, pixels in enumerate(IMAGES[:4]):
        path = tmp_path / "files" / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    source = HuggingFace(str(tmp_path / "files"), label="label", size=8, holdout=0.25)
    source.prepare(tmp_path / "root")
    assert source.class_names(tmp_path / "root") == ["a", "b"]
    assert len(source.open(tmp_path / "root", "train")) == 3


def test_a_single_image_cannot_be_held_out(tmp_path: Path) -> None:
    write(tmp_path / "data", "train", [0], datasets.Value("int64"))
    with pytest.raises(UserError, match=r"data holds no image for the split 'test'; each split needs at least one"):
        HuggingFace(str(tmp_path / "data"), size=8).prepare(tmp_path)


def test_a_missing_image_and_a_missing_package_are_named(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "data", "train", [0, 0], datasets.Value("int64"), [encode(IMAGES[0]), None])
    source = HuggingFace(str(tmp_path / "data"), size=8, holdout=0.5)
    with pytest.raises(UserError, match=r"row 1 of .*: it has no image"):
        source.prepare(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"need the package datasets.*lightning-ddpm\[huggingface\]"):
        HuggingFace("ylecun/mnist").prepare(tmp_path)
