"""Datasets of Hugging Face are read from local Parquet files, without a network."""

import io
import pickle
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import HuggingFace, ImageDataModule
from lightning_ddpm.data.parquet_rows import ParquetTable, StreamedImages
from lightning_ddpm.data.sources import SPLITS
from lightning_ddpm.utils.errors import UserError

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
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
    with pytest.raises(UserError, match=r"need the package datasets.*: pip install 'datasets>="):
        HuggingFace("ylecun/mnist").prepare(tmp_path)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of Parquet files of 20 images in row groups of 4, 4, 2 and 4, 4, 2, and 3 in another split."""
    folder = tmp_path_factory.mktemp("groups")
    feature = datasets.ClassLabel(names=["cat", "dog"])
    for file, first in enumerate((0, N // 2)):
        part = slice(first, first + N // 2)
        labels, images = [i % 2 for i in range(N)][part], [encode(each) for each in IMAGES[part]]
        write(folder, f"train{file}", labels, feature, images)
        path = folder / f"train{file}-00000-of-00001.parquet"
        table = parquet.read_table(path)
        path.unlink()
        parquet.write_table(table, folder / f"train-{file:05d}-of-00002.parquet", row_group_size=4)
    write(folder, "test", [1, 0, -1], feature)
    return folder


def test_streamed_images_and_classes_are_those_that_are_loaded(groups: Path, tmp_path: Path) -> None:
    settings = {"label": "kind", "held_out": "test", "size": 8}
    loaded, streamed = (HuggingFace(str(groups), **settings, streaming=each) for each in (False, True))
    for source in (loaded, streamed):
        source.prepare(tmp_path)
        assert source.class_names(tmp_path) == ["cat", "dog"]
    for split in SPLITS:
        one, other = (each.open(tmp_path, split) for each in (loaded, streamed))
        assert torch.equal(one.labels, other.labels)
        chosen = [len(one) - 1, 0, len(one) // 2, 1]
        assert all(
            torch.equal(*pair) for pair in zip(*(each.__getitems__(chosen) for each in (one, other)), strict=True)
        )
    train = streamed.open(tmp_path, "train")
    assert train.blocks is not None
    assert train.blocks.ends.tolist() == [4, 8, 10, 14, 18, 20]
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301
    assert torch.equal(copy.__getitems__([13])[0], train.__getitems__([13])[0])
    assert len(pickle.dumps(train)) < 3000
    assert train.names[13] == f"row 3 of row group 0 of {groups / 'train-00001-of-00002.parquet'}"
    assert train.fingerprint != streamed.open(tmp_path, "test").fingerprint


def test_streaming_reads_a_row_group_when_it_is_needed_and_keeps_the_last_ones(
    groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda self, number, **more: (read.append(number), original(self, number, **more))[1],
    )
    source = HuggingFace(str(groups), size=8, held_out="test", streaming=True, shuffle_groups=2)
    train = source.open(tmp_path, "train")
    assert read == []
    for index in (0, 3, 4, 1, 5, 8, 4, 0):
        train.__getitems__([index])
    assert read == [0, 1, 2, 0], "0 and 1 are kept; 2 replaces 0, which was used before 1"


def test_streaming_holds_out_whole_row_groups(groups: Path, tmp_path: Path) -> None:
    data = ImageDataModule(HuggingFace(str(groups), size=8, holdout=0.4, streaming=True), root=str(tmp_path))
    data.prepare_data()
    assert len(data.train) + len(data.held_out) == N
    assert data.held_out.blocks is not None
    assert len(data.held_out.blocks.ends) == 2
    images = torch.cat([each.__getitems__(range(len(each)))[0] for each in (data.train, data.held_out)])
    assert {each.numpy().tobytes() for each in images} == {each.transpose(2, 0, 1).tobytes() for each in IMAGES}
    write(tmp_path / "one", "train", [0, 1, 0], datasets.Value("int64"))
    with pytest.raises(UserError, match="has a single row group in the split train, and streaming holds out whole"):
        HuggingFace(str(tmp_path / "one"), size=8, streaming=True).open(tmp_path, "test")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_epoch_has_every_image_once_in_another_order(workers: int, groups: Path, tmp_path: Path) -> None:
    source = HuggingFace(str(groups), size=8, held_out="test", streaming=True, shuffle_groups=2)
    data = ImageDataModule(source, root=str(tmp_path), batch_size=3, num_workers=workers)
    orders = []
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append([each.numpy().tobytes() for images, _ in loader for each in images])
        assert sorted(orders[-1]) == sorted(each.transpose(2, 0, 1).tobytes() for each in IMAGES)
    assert orders[0] != orders[1]


def test_files_at_a_url_are_streamed(groups: Path) -> None:
    memory, urls = fsspec.filesystem("memory"), []
    for path in sorted(groups.glob("train-*.parquet")):
        memory.pipe(f"/cats/{path.name}", path.read_bytes())
        urls.append(f"memory://cats/{path.name}")
    table = ParquetTable(urls)
    parts, rows = table.choose(np.array([4, 0]))
    assert rows.tolist() == [14, 15, 16, 17, 0, 1, 2, 3]
    file = StreamedImages(parts, "image", 1)
    for place, row in enumerate(rows.tolist()):
        assert np.array_equal(np.asarray(Image.open(file(place))), IMAGES[row])
    assert table.read_column("kind") == [i % 2 for i in range(N)]
    local = ParquetTable([str(path) for path in sorted(groups.glob("train-*.parquet"))])
    assert (local.digest, local.ends.tolist()) == (table.digest, table.ends.tolist())
    assert local.state != table.state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "picture"}, "has no column picture; it has image, kind: set data.source.image"),
        ({"image": "kind"}, "the column kind of .* holds no images"),
        ({"held_out": "validation"}, "cannot be loaded from the folder, split validation: it has the splits"),
        ({"size": 9}, r"row 0 of row group 0 of .*parquet cannot be used: the image is 8x8, less than 9x9"),
        ({"shuffle_groups": 0}, "shuffle_groups must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_training(settings, message, groups: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        HuggingFace(**{"name": str(groups), "size": 8, "streaming": True} | settings).prepare(tmp_path)


def test_a_streamed_row_names_no_file_to_read(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "mine.png")
    rows = [{"bytes": None, "path": str(tmp_path / "mine.png")}]
    for split in SPLITS:
        write(tmp_path / "data", split, [0], datasets.Value("int64"), rows)
    source = HuggingFace(str(tmp_path / "data"), size=8, held_out="test", streaming=True)
    with pytest.raises(UserError, match=r"its image is a file beside the table; .* data\.source\.streaming to false"):
        source.prepare(tmp_path)


def test_a_set_that_is_not_parquet_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "pngs" / "train"
    folder.mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(folder / "0.png")
    with pytest.raises(UserError, match=r"0\.png is not Parquet, which streaming reads; .* refs/convert/parquet"):
        HuggingFace(str(tmp_path / "pngs"), size=8, streaming=True).open(tmp_path, "train")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"damaged\.parquet cannot be read as Parquet"):
        ParquetTable([str(damaged)])
