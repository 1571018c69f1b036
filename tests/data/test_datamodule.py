"""The batches of a real Trainer: their images, order and form."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_outputs import write_noise_image
from helpers.tiny import quiet_trainer
from PIL import Image
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.data import Digits, ImageDataModule, ImageFolder, decode_cache
from lightning_ddpm.data.datasets import hash_images
from lightning_ddpm.data.image_io import to_float, to_uint8
from lightning_ddpm.data.sharding import Shard, ShuffledShard, spread_indices
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError


class Recorder(LightningModule):
    """Records every batch and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.training_batches: list[tuple[Tensor, Tensor]] = []
        self.validation_batches: list[tuple[Tensor, Tensor]] = []
        self.test_batches: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.training_batches.append(batch)
        return self.weight * 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_batches.append(batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WatchedData(ImageDataModule):
    """Records every batch before its transfer to the device."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.before: list[tuple[Tensor, Tensor]] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.before.append(batch)
        return batch


def fit(data: ImageDataModule, folder: Path, epochs: int = 1, **arguments: Any) -> Recorder:
    recorder = Recorder()
    quiet_trainer(folder, max_epochs=epochs, **arguments).fit(recorder, datamodule=data)
    return recorder


def seen(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([images for images, _ in batches])


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def rows(images: Tensor) -> list[bytes]:
    """Return the sorted bytes of the images, for comparison as sets."""
    return sorted(map(bytes, to_uint8(images).flatten(1).numpy()))


def test_images_are_transferred_as_uint8_and_converted_to_floats_in_minus_one_to_one(tmp_path: Path) -> None:
    data = WatchedData(Digits(), batch_size=600)
    recorder = fit(data, tmp_path)
    assert len(data.before) == len(recorder.training_batches) == 3
    for (pixels, labels), (images, same_labels) in zip(data.before, recorder.training_batches, strict=True):
        assert pixels.dtype == torch.uint8
        assert images.dtype == torch.float32
        assert same_labels.dtype == torch.int64
        assert torch.equal(labels, same_labels)
        assert torch.equal(images, pixels / 127.5 - 1)
        assert (images.min(), images.max()) == (-1, 1)
        assert images.shape[1:] == (1, 8, 8)


def test_an_epoch_has_every_training_image_once_with_its_label(tmp_path: Path) -> None:
    recorder = fit(ImageDataModule(Digits(), batch_size=100), tmp_path)
    train = Digits().open(Path("unused"), "train")
    images, labels = train.__getitems__(range(len(train)))
    assert len(recorder.training_batches[-1][0]) == len(train) % 100, "the last batch is not dropped"
    assert rows(seen(recorder.training_batches)) == sorted(map(bytes, images.flatten(1).numpy()))
    right = {bytes(image): int(label) for image, label in zip(images.flatten(1).numpy(), labels, strict=True)}
    shown = to_uint8(seen(recorder.training_batches)).flatten(1).numpy()
    given = torch.cat([labels for _, labels in recorder.training_batches]).tolist()
    assert [right[bytes(image)] for image in shown] == given


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def order(seed: int) -> list[Tensor]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        torch.manual_seed(torch.seed() % 1000)  # the global generator has no effect
        batches = fit(ImageDataModule(Digits(), batch_size=809), tmp_path, epochs=2).training_batches
        return [seen(batches[:2]), seen(batches[2:])]

    first, again, other = order(5), order(5), order(6)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert rows(first[0]) == rows(first[1]) == rows(other[0])


def test_the_order_is_shuffled() -> None:
    order = torch.tensor(list(ShuffledShard(1000, 0, Ranks(), 8)))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize(("n", "world_size"), [(12, 2), (13, 2), (14, 3), (5, 1)])
def test_ranks_train_on_equal_numbers_of_distinct_images(n: int, world_size: int) -> None:
    skipped = set()
    for epoch in range(40):
        shards = [ShuffledShard(n, 0, Ranks(rank, world_size), 2) for rank in range(world_size)]
        for shard in shards:
            shard.set_epoch(epoch)
        shares = [list(shard) for shard in shards]
        assert {len(share) for share in shares} == {len(shard) for shard in shards} == {n // world_size}
        given = [index for share in shares for index in share]
        assert len(set(given)) == len(given)
        skipped |= set(range(n)) - set(given)
    assert skipped == (set(range(n)) if n % world_size else set()), "different images are skipped each time"


@pytest.mark.parametrize(("n", "batch_size", "world_size"), [(12, 3, 2), (13, 4, 2), (2, 1, 3), (2, 5, 3)])
def test_ranks_validate_on_every_image_once_in_the_batches_of_a_single_rank(
    n: int, batch_size: int, world_size: int
) -> None:
    def batches(rank: int, world_size: int) -> list[list[int]]:
        indices = list(shard := Shard(n, batch_size, Ranks(rank, world_size)))
        assert len(shard) == len(indices)
        return [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    alone = batches(0, 1)
    assert [index for batch in alone for index in batch] == list(range(n))
    assert sorted(batch for rank in range(world_size) for batch in batches(rank, world_size)) == alone


def test_validation_and_test_use_the_held_out_images_in_order(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=50, flip=True)
    recorder = fit(data, tmp_path, limit_train_batches=1, limit_val_batches=1.0)
    quiet_trainer(tmp_path).test(recorder, datamodule=data, verbose=False)
    held_out = Digits().open(Path("unused"), "test")
    images, labels = held_out.__getitems__(range(len(held_out)))
    for batches in (recorder.validation_batches, recorder.test_batches):
        assert torch.equal(to_uint8(seen(batches)), images), "un-flipped"
        assert torch.equal(torch.cat([labels for _, labels in batches]), labels)


@pytest.mark.parametrize("limit", [2, 0.5])
def test_limited_validation_uses_images_from_all_of_the_held_out_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: float
) -> None:
    data = ImageDataModule(Digits(), batch_size=40)
    recorder = fit(data, tmp_path, limit_train_batches=1, limit_val_batches=limit)
    images = seen(recorder.validation_batches)
    assert len(images) == 80
    assert "val: 80 of the 179 held-out images, spread evenly" in capsys.readouterr().out
    held_out = to_float(data.held_out.__getitems__(range(179))[0])
    chosen = [int((held_out == each).flatten(1).all(1).nonzero()[0]) for each in images]
    assert all(i * 179 // 80 <= index < (i + 1) * 179 // 80 for i, index in enumerate(chosen))


@pytest.mark.parametrize(("n", "total"), [(1, 1), (3, 10), (100, 1000), (128, 179), (999, 1000), (1000, 1000)])
def test_spread_indices_has_one_of_each_equal_part(n: int, total: int) -> None:
    found = spread_indices(n, total)
    assert all(i * total // n <= index < (i + 1) * total // n for i, index in enumerate(found))


def test_spread_indices_samples_every_class_where_classes_are_sorted_or_take_turns() -> None:
    chosen = torch.tensor(spread_indices(100, 1000))
    for labels in (torch.arange(1000) // 100, torch.arange(1000) % 10, torch.arange(1000) % 5):
        counts = labels[chosen].bincount()
        assert counts.min() >= 0.6 * counts.float().mean()


# flips


def flips(folder: Path, seed: int = 0, epochs: int = 1, batch_size: int = 200) -> tuple[Tensor, Tensor]:
    """Return which training images were mirrored and which are asymmetric; fail if one was changed otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", str(seed))
        data = WatchedData(Digits(), batch_size=batch_size, flip=True)
        recorder = fit(data, folder, epochs)
    before = torch.cat([pixels for pixels, _ in data.before])
    after = to_uint8(seen(recorder.training_batches))
    kept, mirrored = ((after == each).flatten(1).all(1) for each in (before, before.flip(-1)))
    assert (kept | mirrored).all()
    return mirrored, kept != mirrored


def test_about_half_of_the_training_images_are_flipped_exactly(tmp_path: Path) -> None:
    mirrored, asymmetric = flips(tmp_path)
    share = mirrored[asymmetric].float().mean()
    assert asymmetric.sum() > 1500
    assert abs(share - 0.5) < 4 * 0.5 / asymmetric.sum().sqrt()


def test_nothing_is_flipped_by_default(tmp_path: Path) -> None:
    data = WatchedData(Digits(), batch_size=200)
    recorder = fit(data, tmp_path)
    assert torch.equal(to_uint8(seen(recorder.training_batches)), torch.cat([pixels for pixels, _ in data.before]))


def test_flips_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    first, again, other = (flips(tmp_path, seed, epochs=2, batch_size=809) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    steps = first[0].split(809)
    assert len(steps) == 4
    for i in range(4):
        assert not torch.equal(steps[i], other[0].split(809)[i])
        for j in range(i):
            assert 0.4 < (steps[i] == steps[j]).float().mean() < 0.6, "steps flip different places of the batch"


# workers


def test_workers_read_the_same_batches(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")

    def batches(workers: int) -> Tensor:
        data = ImageDataModule(ImageFolder(size=8, holdout=0.25), str(tmp_path), 7, flip=True, num_workers=workers)
        return seen(fit(data, tmp_path / "run", epochs=2).training_batches)

    assert torch.equal(batches(0), batches(2))


# errors, and the batches of predict


def test_a_batch_larger_than_the_dataset_is_refused_before_training(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(UserError, match=r"batch of 1619 images .* larger than the dataset \(1618 images\); lower data"):
        quiet_trainer(tmp_path, max_steps=1).fit(recorder, datamodule=ImageDataModule(Digits(), batch_size=1619))
    assert recorder.training_batches == []


def test_a_batch_as_large_as_the_dataset_is_accepted(tmp_path: Path) -> None:
    recorder = fit(ImageDataModule(Digits(), batch_size=1618), tmp_path)
    assert [len(images) for images, _ in recorder.training_batches] == [1618]


def test_a_batch_size_of_0_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        ImageDataModule(Digits(), batch_size=0)


def test_the_reference_is_the_whole_training_set_without_flips() -> None:
    data = ImageDataModule(Digits(), batch_size=7, flip=True)
    reference, train = data.train, Digits().open(Path("unused"), "train")
    assert torch.equal(reference.__getitems__(range(len(reference)))[0], train.__getitems__(range(len(train)))[0])


def test_the_data_module_has_the_shape_and_classes_of_its_source() -> None:
    data = ImageDataModule(Digits())
    assert (data.channels, data.size) == (1, 8)
    assert data.class_names() == list("0123456789")


def test_predict_gets_ranges_of_images_to_generate(tmp_path: Path) -> None:
    class Predictor(Recorder):
        def predict_step(self, batch: Any, batch_idx: int) -> list[int]:
            return [int(each) for each in batch]

    data = ImageDataModule(Digits(), batch_size=4, predict_images=10)
    made = quiet_trainer(tmp_path).predict(Predictor(), datamodule=data)
    assert made == [[0, 0, 4], [0, 4, 8], [0, 8, 10]]


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "in files"])
def test_a_resumed_run_reports_training_images_that_have_changed(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode_cache, "MAX_BYTES_IN_MEMORY", memory)
    for i in range(6):
        write_noise_image(tmp_path / "ab"[i % 2] / f"{i}.png", (8, 8))

    def open_data() -> ImageDataModule:
        data = ImageDataModule(ImageFolder(size=8, holdout=0.2), str(tmp_path))
        data.prepare_data()
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), global_rank=0, world_size=1)  # type: ignore[assignment]
        return data

    state = {"epoch": 0, "seen": 0, "images": 5, "batch": [1, 1], "sha256": hash_images(open_data().train)}
    for change in (None, "pixels", "label"):
        if change == "pixels":
            write_noise_image(tmp_path / "a" / "0.png", (8, 8))
        elif change == "label":
            (tmp_path / "a" / "2.png").rename(tmp_path / "b" / "2.png")
            state["sha256"] = hash_images(open_data().train)
            (tmp_path / "b" / "2.png").rename(tmp_path / "a" / "2.png")
        capsys.readouterr()
        open_data().load_state_dict(state)
        assert ("changed: the training images" in capsys.readouterr().out) == (change is not None)
