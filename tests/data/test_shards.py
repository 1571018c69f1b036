"""Tar files of images: any image is read alone, and what cannot be used is named before training."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_ddpm.data import ImageDataModule, Shards
from lightning_ddpm.data.shards import find_shards
from lightning_ddpm.utils.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sample(index: int, label: str = "cls") -> dict[str, bytes]:
    return {
        f"./part.1/{index:04d}.png": encode(IMAGES[index]),
        f"./part.1/{index:04d}.{label}": b"%d\n" % (index % 3),
        f"./part.1/{index:04d}.json": b"{}",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        members = [sample(5 * shard + i) for i in range(5)]
        write_tar(
            folder / f"train-{shard:03d}.tar", {name: each for sample in members for name, each in sample.items()}
        )
    return folder


@pytest.mark.parametrize("train", ["*.tar", "train-{000..003}.tar", "file://ROOT/train-{000..003}.tar"])
def test_every_image_is_read_with_its_class(train: str, root: Path) -> None:
    source = Shards(train.replace("ROOT", str(root)), label="cls", size=8, holdout=0.1)
    source.prepare(root)
    assert source.class_names(root) == ["0", "1", "2"]
    train_data, held_out = source.open(root, "train"), source.open(root, "test")
    assert (len(train_data), len(held_out)) == (18, 2)
    images = torch.cat([data.__getitems__(range(len(data)))[0] for data in (train_data, held_out)])
    expected = IMAGES[[*(i for i in range(20) if i not in (9, 19)), 9, 19]]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    assert held_out.labels.tolist() == [0, 1]
    copy = pickle.loads(pickle.dumps(train_data))  # noqa: S301
    assert torch.equal(copy.__getitems__([17])[0], images[17:18])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_and_writes_the_same_files(root: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    theirs = [each["png"] for each in wds.WebDataset(str(root / "train-002.tar"), shardshuffle=False)]
    ours = Shards("train-002.tar", size=8, holdout=0.2)
    assert theirs == [encode(IMAGES[i]) for i in range(10, 15)]
    assert np.array_equal(ours.open(root, "train")[3][0].permute(1, 2, 0).numpy(), IMAGES[13])
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"{i}", "png": encode(IMAGES[i]), "cls": i})
    data = Shards("a.tar", label="cls", size=8, holdout=0.3).open(tmp_path, "train")
    assert (data.labels.tolist(), np.array_equal(data[2][0].permute(1, 2, 0), IMAGES[2])) == ([0, 1, 2], True)


def test_a_split_of_its_own_is_held_out_and_classes_have_names(root: Path) -> None:
    names = ["cat", "dog", "cow"]
    source = Shards("train-{000..002}.tar", "train-003.tar", label="cls", classes=names, size=8)
    data = ImageDataModule(source, root=str(root), batch_size=4)
    data.prepare_data()
    assert (len(data.train), len(data.held_out), data.class_names()) == (15, 5, names)
    with pytest.raises(UserError, match=r"the shards have the class 2, and data\.source\.classes 2 names"):
        Shards("*.tar", label="cls", classes=names[:2], size=8).prepare(root)


def test_classes_are_those_of_both_parts(root: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample(0) | sample(1))
    write_tar(tmp_path / "b.tar", sample(2))
    source = Shards(str(tmp_path / "a*.tar"), "b.tar", label="CLS", size=8)
    source.prepare(tmp_path)
    assert source.class_names(tmp_path) == ["0", "1", "2"]
    assert source.open(tmp_path, "test").labels.tolist() == [2]


def test_a_single_image_cannot_be_held_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample(0))
    source = Shards(size=8)
    assert len(source.open(tmp_path, "train")) == 1
    with pytest.raises(UserError, match=r"a.tar holds no image for the split 'test'; each split needs at least one"):
        source.open(tmp_path, "test")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        (sample(0), {"image": "jpg"}, r"a.tar has no file with the extension jpg; it has cls, json, png: set"),
        (sample(0, "txt"), {"label": "cls"}, r"a.tar has no ./part.1/0000.cls, the class of an image"),
        (sample(0) | {"./part.1/0000.jpg": b""}, {}, r"has two images for the sample ./part.1/0000; name one"),
        ({"0.png": encode(IMAGES[0]), "0.cls": b"cat"}, {"label": "cls"}, "0.cls holds b'cat'; a class is a number"),
        ({"0.png": b"no image"}, {}, r"the image at byte 512 of .*a.tar cannot be used: the file is not an image"),
        ({}, {}, "has no file with the extension .* it has no files"),
        (sample(0), {"train": "b*.tar"}, r"there is no tar file b\*.tar in"),
        (sample(0), {"train": "b.tar"}, "b.tar cannot be read: .*No such file.*; check data.source.train"),
        (sample(0), {"train": "nowhere://a.tar"}, "nowhere://a.tar cannot be read: Protocol not known"),
        ({"0.png": encode(IMAGES[0]), "0.cls": b"9" * 20}, {"label": "cls"}, "0.cls holds b'9999.*a class is a number"),
        (sample(0), {"held_out": "a.tar"}, r"a.tar is in both data\.source\.train and held_out; name it in one"),
        (sample(0), {"train": []}, r"data\.source\.train names no tar file; name some"),
        (sample(0), {"classes": ["cat"]}, r"names the classes in files of data\.source\.label, which is not given"),
        (sample(0), {"holdout": 1.0}, r"holdout must lie in \(0, 1\)"),
        (sample(0), {"channels": 5}, "channels must be 1"),
    ],
)
def test_what_cannot_be_read_is_named_before_training(members, settings, message, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        Shards(**({"size": 8} | settings)).prepare(tmp_path)


@pytest.mark.parametrize("damage", [cut, compress])
def test_a_damaged_or_compressed_tar_file_is_refused(damage, tmp_path: Path) -> None:
    damage(write_tar(tmp_path / "a.tar", {f"{i}.png": encode(IMAGES[i]) for i in range(9)}))
    with pytest.raises(UserError, match=r"a.tar is not a whole tar file without compression"):
        Shards(size=8).prepare(tmp_path)


def test_the_index_is_read_from_the_cache_until_the_file_changes(tmp_path: Path, monkeypatch) -> None:
    write_tar(tmp_path / "a.tar", sample(0) | sample(1))
    Shards(size=8, holdout=0.5).prepare(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("lightning_ddpm.data.tar_index._scan", None)
        before = Shards(size=8, holdout=0.5).open(tmp_path, "train")
    write_tar(tmp_path / "a.tar", sample(2) | sample(1) | sample(3))
    after = Shards(size=8, holdout=0.5).open(tmp_path, "train")
    assert before.fingerprint != after.fingerprint
    assert np.array_equal(after[0][0].permute(1, 2, 0).numpy(), IMAGES[2])


def test_ranges_of_numbers_are_expanded(tmp_path: Path) -> None:
    assert find_shards(tmp_path, "https://x/{8..10}/a{0..1}.tar") == [
        f"https://x/{i}/a{j}.tar" for i in (8, 9, 10) for j in (0, 1)
    ]
