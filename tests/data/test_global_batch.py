"""The images of an optimizer step: how devices and accumulated batches divide them, and what an epoch leaves over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.data.global_batch import divide_step
from lightning_ddpm.data.sharding import ShuffledShard
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import PositionRandom

N = 104


def list_steps(world_size: int, batch_size: int, accumulate: int, seen: int = 0, multiple: int = 1) -> list[list[int]]:
    """Return the images of each step, by their positions in it, as the ranks' batches have them."""
    steps: dict[int, dict[int, int]] = {}
    totals: dict[int, set[int]] = {}
    for rank in range(world_size):
        shard = ShuffledShard(N, 0, Ranks(rank, world_size), batch_size, 0, seen, multiple)
        images, done = list(shard), shard.count_batches_done()
        batches = done + -(-len(images) // batch_size)
        for batch in range(done, batches):
            part = shard.locate(batch, accumulate, batches)
            mine = shard.list_images(batch)
            assert len(mine) == part.stop - part.start
            step = steps.setdefault((batch - done) // accumulate, {})
            assert not set(step) & set(range(part.start, part.stop)), "two batches have the same position"
            step.update(zip(range(part.start, part.stop), mine, strict=True))
            totals.setdefault((batch - done) // accumulate, set()).add(part.total)
    assert all(sorted(step) == list(range(len(step))) for step in steps.values()), "a position has no image"
    assert [{len(step)} for step in steps.values()] == list(totals.values())
    return [[step[position] for position in sorted(step)] for step in steps.values()]


@pytest.mark.parametrize(
    ("world_size", "batch_size", "accumulate"), [(1, 4, 3), (2, 6, 1), (2, 3, 2), (3, 4, 1), (4, 3, 1)]
)
@pytest.mark.parametrize("seen", [0, 24])
def test_a_step_has_the_same_images_at_the_same_positions_however_it_is_divided(
    world_size: int, batch_size: int, accumulate: int, seen: int
) -> None:
    whole = list_steps(1, 12, 1, seen)
    assert sum(map(len, whole)) == N - seen
    assert list_steps(world_size, batch_size, accumulate, seen) == whole


def test_fewer_images_than_ranks_are_skipped_at_the_end_of_an_epoch() -> None:
    assert list_steps(5, 4, 1) == list_steps(1, 20, 1)[:5]


def test_without_the_last_step_all_batches_have_one_size() -> None:
    for world_size, batch_size, accumulate in ((1, 12, 1), (2, 3, 2), (3, 4, 1)):
        assert list_steps(world_size, batch_size, accumulate, multiple=12) == list_steps(1, 12, 1)[:8]


@pytest.mark.parametrize(
    ("images", "devices", "most", "expected"),
    [(128, 1, 128, (128, 1)), (128, 2, 64, (64, 1)), (128, 1, 48, (32, 4)), (96, 4, 128, (24, 1)), (6, 2, 2, (1, 3))],
)
def test_a_step_is_divided_into_the_fewest_equal_batches(
    images: int, devices: int, most: int, expected: tuple[int, int]
) -> None:
    assert divide_step(images, devices, most) == expected


def test_a_step_that_the_devices_cannot_share_equally_is_refused_with_the_nearest_that_they_can() -> None:
    with pytest.raises(
        UserError, match=r"a step of 64 images cannot .* 3 devices; .* data.global_batch_size to 63 or 66"
    ):
        divide_step(64, 3, 64)


class Sizes(Callback):
    """Records the number of images in each batch, and the images."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.images: list[list[bytes]] = [[]]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.sizes.append(len(batch[0]))
        self.images[-1] += [each.numpy().tobytes() for each in batch[0]]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images.append([])


def fit(folder: Path, data: ImageDataModule, **arguments: Any) -> tuple[Sizes, Trainer]:
    sizes = Sizes()
    trainer = quiet_trainer(folder, callbacks=[sizes], **({"max_epochs": 2} | arguments))
    trainer.fit(tiny_model(), datamodule=data)
    return sizes, trainer


def test_drop_last_skips_other_images_in_each_epoch(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=200, drop_last=True)
    sizes, trainer = fit(tmp_path, data, accumulate_grad_batches=2)
    assert sizes.sizes == [200] * 16
    assert trainer.global_step == 8
    first, second = (set(each) for each in sizes.images[:2])
    assert first != second


def test_a_configured_step_sets_the_accumulation(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=300, global_batch_size=600)
    sizes, trainer = fit(tmp_path, data, max_epochs=1)
    assert trainer.accumulate_grad_batches == 2
    assert sizes.sizes == [300] * 5 + [118]
    assert trainer.global_step == 3


def test_a_configured_step_and_another_accumulation_are_refused(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=300, global_batch_size=600)
    with pytest.raises(
        UserError, match=r"takes 2 batches of 300 images .* trainer\.accumulate_grad_batches is 3; leave it out"
    ):
        fit(tmp_path, data, accumulate_grad_batches=3)


def test_drop_last_with_a_step_larger_than_the_dataset_is_refused(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=1000, drop_last=True)
    with pytest.raises(UserError, match=r"a step of 2000 images is larger than the dataset \(1618 images\)"):
        fit(tmp_path, data, accumulate_grad_batches=2)


def test_a_resumed_run_counts_the_images_that_it_has_seen_in_any_batch_size() -> None:
    shard = ShuffledShard(N, 0, Ranks(), 16, 0, 20)
    assert shard.count_seen(shard.count_batches_done()) == 20
    assert shard.count_seen(shard.count_batches_done() + 2) == 52


def test_the_position_of_an_image_decides_its_random_numbers() -> None:
    def generate(start: int, stop: int, total: int = 300) -> tuple[torch.Tensor, ...]:
        random = PositionRandom("cpu", "test", 0, index=5, start=start, stop=stop, total=total)
        return random.rand(), random.randn_like(torch.empty(stop - start, 2, 3))

    whole = generate(0, 300)
    for start, stop in ((0, 1), (100, 200), (128, 256), (250, 300), (299, 300)):
        for all_, part in zip(whole, generate(start, stop), strict=True):
            assert torch.equal(all_[start:stop], part)
    assert len(whole[0].unique()) == 300
