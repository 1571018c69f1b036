"""The splits of a folder of images: their names, what is held out without them, and what is refused."""

import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_ddpm.data import ImageFolder
from lightning_ddpm.data.sample_images import open_sample_folder
from lightning_ddpm.data.splits import hold_out, split_indices
from lightning_ddpm.utils.errors import UserError


def write_images(root: Path, *paths: str) -> Path:
    """Write an image to each of these paths, of a gray level of its own."""
    for level, path in enumerate(paths, start=1):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(root / path)
    return root


def read_splits(root: Path, **arguments: float) -> dict[str, list[tuple[int, int]]]:
    """Return the gray level and the label of every image of each split."""
    source = ImageFolder(channels=1, size=8, **arguments)
    source.prepare(root)
    found = {}
    for split in ("train", "test"):
        data = source.open(root, split)
        images, labels = data.__getitems__(range(len(data)))
        found[split] = list(zip(images.flatten(1)[:, 0].tolist(), labels.tolist(), strict=True))
    return found


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
@pytest.mark.parametrize("other", ["test", "testing", "val", "valid", "validation", "dev", "Validation", "TEST"])
def test_every_usual_name_is_a_split_and_is_printed(
    train: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(
        tmp_path, f"{train}/cat/a.png", f"{train}/dog/b.png", f"{other}/cat/c.png", f"{other}/dog/d.png"
    )
    assert read_splits(root) == {"train": [(1, 0), (2, 1)], "test": [(3, 0), (4, 1)]}
    assert ImageFolder(size=8).class_names(root) == ["cat", "dog"]
    assert f"images: 2 to train on in {root / train}, 2 held out in {root / other}\n" in capsys.readouterr().out


def test_train_alone_is_a_split_of_which_images_are_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(5)))
    found = read_splits(root, holdout=0.2)
    assert found["test"] == [(5, 0), (10, 1)]
    assert len(found["train"]) == 8
    assert ImageFolder(size=8).class_names(root) == ["cat", "dog"]
    line = f"images: 8 to train on in {root / 'train'}, 2 held out of the same folder, spread evenly (holdout 0.2)"
    assert line in capsys.readouterr().out


def test_of_three_splits_the_test_images_are_held_out_and_the_third_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path, "train/a.png", "val/b.png", "test/c.png", ".hidden/d.png")
    assert read_splits(root) == {"train": [(1, -1)], "test": [(3, -1)]}
    assert f"held out in {root / 'test'}; {root / 'val'} is not read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("train/a.png", "training/b.png"), "train and training, which name the same split"),
        (("Train/a.png", "train/b.png"), "Train and train, which name the same split"),
        (("train/a.png", "val/b.png", "Validation/c.png"), "Validation and val, which name the same split"),
        (("train/a.png", "cat/b.png"), "the splits train and images outside them, in cat"),
        (("train/a.png", "test/b.png", "c.png"), "the splits train, test and images outside them, in c.png"),
        (("dev/a.png", "cat/b.png"), "the splits dev and images outside them, in cat"),
        (("val/a.png", "test/b.png"), "no folder train"),
    ],
)
def test_ambiguous_folders_are_refused(paths: tuple[str, ...], message: str, tmp_path: Path) -> None:
    root, source = write_images(tmp_path, *paths), ImageFolder(size=8)
    for work in (source.prepare, source.class_names, lambda root: source.open(root, "train")):
        with pytest.raises(UserError, match=re.escape(message)):
            work(root)


def test_folders_without_images_beside_the_splits_are_accepted(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train/a.png", "test/b.png")
    (root / "README.md").write_text("")
    (root / "annotations").mkdir()
    (root / "annotations" / "all.json").write_text("{}")
    assert read_splits(root) == {"train": [(1, -1)], "test": [(2, -1)]}


def test_a_folder_of_samples_or_a_reference_with_several_splits_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a.png", "val/b.png")
    with pytest.raises(
        UserError, match=rf"holds the splits train, val; name one of them, such as {tmp_path / 'train'}"
    ):
        open_sample_folder(tmp_path)
    assert len(open_sample_folder(tmp_path / "train")) == 1


@pytest.mark.parametrize("share", ["0.02", "0.1", "0.3", "0.333", "0.5", "0.66", "0.9", "0.99", "1e-6"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 49, 50, 97, 1000])
def test_as_many_images_are_held_out_as_asked_for(share: str, n: int) -> None:
    held_out = hold_out(n, float(share))
    wanted = int(n * Fraction(share))
    ends = [int(end * Fraction(share)) for end in range(n + 1)]
    assert held_out == ([i for i in range(n) if ends[i] < ends[i + 1]] or [n - 1] * (n > 1)), "as runs before had them"
    parts = split_indices(n, float(share))
    assert (parts["test"].tolist(), sorted(np.concatenate([*parts.values()]))) == (held_out, [*range(n)])
    assert len(held_out) == (max(1, wanted) if n > 1 else 0)
    if wanted > 1:
        gaps = {later - earlier for earlier, later in pairwise(held_out)}
        assert max(gaps) - min(gaps) <= 1, "evenly spaced"


@pytest.mark.parametrize("stride", [2, 4, 5, 10, 20, 50, 100])
def test_a_holdout_of_one_in_k_is_every_kth_image(stride: int) -> None:
    """So the splits of the shipped configs, which hold out 0.02, are what they always were."""
    for n in (stride, 2 * stride - 1, 997, 1000):
        assert hold_out(n, 1 / stride) == list(range(stride - 1, n, stride))
