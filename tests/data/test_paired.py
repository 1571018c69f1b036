"""Sources of pairs: two folders of equal names, and images given their own block means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from lightning_ddpm.data import CelebA, Digits, Downscaled, ImageDataModule, PairedFolders
from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.sources import Split
from lightning_ddpm.diffusion.samplers.ddrm import Downsample
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError


def write_pairs(root: Path, n: int = 10) -> list[np.ndarray]:
    """Write n random targets of 16x12 and their darker halves of 8x6, with other suffixes; return the targets."""
    random, targets = np.random.default_rng(0), []
    for index in range(n):
        image = random.integers(0, 256, (16, 12), dtype=np.uint8)
        targets.append(image)
        for name, content in ((f"target/a/{index}.png", image), (f"input/a/{index}.bmp", image[::2, ::2] // 2)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / name)
    return targets


def make_source(**options: object) -> PairedFolders:
    return PairedFolders(channels=1, size=(16, 12), given_size=(8, 6), holdout=0.2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("decode", [True, False])
def test_the_images_of_a_pair_have_one_name_and_stay_together(tmp_path: Path, decode: bool) -> None:
    targets = write_pairs(tmp_path)
    data = ImageDataModule(make_source(), root=str(tmp_path))
    data.prepare_data()
    found = []
    for part in (data.train, data.held_out) if decode else (data.source.open(tmp_path, "train"), data.held_out):
        assert isinstance(part, ConditionedDataset)
        pixels, condition = part.__getitems__(range(len(part)))
        assert isinstance(condition, Condition)
        assert condition.image is not None
        assert torch.equal(condition.image, pixels[:, :, ::2, ::2] // 2)
        found += [each[0].numpy() for each in pixels]
    assert sorted(map(bytes, found)) == sorted(map(bytes, targets))
    assert (len(data.train), len(data.held_out)) == (8, 2)


def test_a_changed_partner_is_other_data(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    before = make_source().open(tmp_path, "train")
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "input" / "a" / "3.bmp")
    after = make_source().open(tmp_path, "train")
    assert before.fingerprint == after.fingerprint, "that of the images, which metrics compare with"
    assert before.condition_state != after.condition_state


def test_missing_partners_and_folders_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"channels must be 1 \(grayscale\) or 3 \(RGB\), got 2"):
        PairedFolders(given_channels=2)
    with pytest.raises(UserError, match="has no folder input; pairs are in input and target"):
        make_source().prepare(tmp_path)
    write_pairs(tmp_path)
    (tmp_path / "input" / "a" / "3.bmp").unlink()
    (tmp_path / "target" / "a" / "5.png").unlink()
    with pytest.raises(UserError) as caught:
        make_source().prepare(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"2 images in {tmp_path} have no partner of the same name:\n")
    assert "target/a/3 has none in input" in message
    assert "input/a/5 has none in target" in message


def test_partners_of_another_ratio_or_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "input" / "a" / "3.bmp")
    with pytest.raises(UserError, match=r"3.png is 12x16 and .*3.bmp 8x8 \(width x height\), so that they cannot show"):
        make_source().prepare(tmp_path)
    (tmp_path / "input" / "a" / "3.bmp").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of the 10 pairs in .* cannot be used:\n.*3.bmp: the file is not an image"):
        make_source().prepare(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "input" / "a" / "3.png")
    with pytest.raises(UserError, match=r"input holds several images of one name, .*:\na/3\nKeep one of each"):
        make_source().prepare(tmp_path)


def test_the_partners_of_a_split_that_is_not_read_are_not_missing(tmp_path: Path) -> None:
    for name in ("input", "target"):
        for level, split in enumerate(("train", "val", "test")):
            (tmp_path / name / split).mkdir(parents=True)
            Image.new("L", (8, 8), level).save(tmp_path / name / split / "0.png")
    source = PairedFolders(channels=1, size=8)
    source.prepare(tmp_path)
    parts: tuple[tuple[int, Split], ...] = (0, "train"), (2, "test")
    for level, split in parts:
        pixels, condition = source.open(tmp_path, split).__getitems__([0])
        assert isinstance(condition, Condition)
        assert condition.image is not None
        assert pixels.unique().tolist() == condition.image.unique().tolist() == [level]


def test_a_pair_is_compared_upright(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "input" / "a" / "3.bmp").unlink()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("3.jpg", "3.png", "3.tif"):
        path = tmp_path / "input" / "a" / name
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(path, exif=exif)  # upright 12x16, width x height
        make_source().prepare(tmp_path)
        Image.fromarray(np.zeros((16, 12), np.uint8)).save(path, exif=exif)
        with pytest.raises(UserError, match=rf"3.png is 12x16 and .*{name} 16x12 \(width x height\)"):
            make_source().prepare(tmp_path)
        path.unlink()


def test_block_means_are_those_of_ddrm_rounded(tmp_path: Path) -> None:
    source = Downscaled(Digits(), 2)
    source.inspect(tmp_path)
    assert source.condition.image == (1, 4, 4)
    pixels, condition = source.open(tmp_path, "test").__getitems__(range(50))
    assert isinstance(condition, Condition)
    assert condition.image is not None
    means = Downsample(2)(pixels.double())
    assert torch.equal(condition.image, means.round().to(torch.uint8))
    assert condition.label is not None
    assert source.class_names(tmp_path) == [str(digit) for digit in range(10)]
    with pytest.raises(UserError, match=r"images of 8x8 are not divided by data\.source\.factor 3"):
        Downscaled(Digits(), 3).inspect(tmp_path)
    with pytest.raises(UserError, match="are conditioned on an image of 1x4x4 already"):
        Downscaled(source, 2).inspect(tmp_path)
    with pytest.raises(UserError, match="factor must be at least 2, got 1"):
        Downscaled(CelebA(), 1)
