"""The order of images that are read in blocks: each once an epoch, a block by one process, and resumed exactly."""

import itertools
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lightning_ddpm.data.order import Blocks, ImageOrder, Lanes, read_lanes
from lightning_ddpm.data.sharding import ShuffledShard
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import make_generator

SEED = 3


def make_blocks(k: int = 37, window: int = 3) -> Blocks:
    """Return k blocks of 1 to 12 images."""
    sizes = np.random.default_rng(0).integers(1, 13, k)
    return Blocks(np.cumsum(sizes), window, "digest")


def find_blocks(blocks: Blocks, images: np.ndarray) -> np.ndarray:
    return np.searchsorted(blocks.ends, images, side="right")


def test_without_blocks_it_is_the_permutation_of_earlier_versions() -> None:
    order = ImageOrder(50, SEED, None, Lanes(4, 8))
    for epoch in (0, 7):
        generator = make_generator("cpu", "order", SEED, index=epoch)
        assert torch.equal(order(epoch), torch.randperm(50, generator=generator))
    assert order.state_dict(0) == {}
    assert read_lanes({"epoch": 3}) is None


@pytest.mark.parametrize(("count", "batch_size", "window"), [(1, 4, 1), (1, 8, 100), (4, 4, 3), (6, 7, 2), (50, 4, 2)])
def test_every_image_comes_once_and_batches_are_of_one_lane_within_its_window(
    count: int, batch_size: int, window: int
) -> None:
    blocks = make_blocks(window=window)
    n = int(blocks.ends[-1])
    order = ImageOrder(n, SEED, blocks, Lanes(count, batch_size))
    epochs = [order(epoch).numpy() for epoch in range(3)]
    for each in epochs:
        assert np.array_equal(np.sort(each), np.arange(n))
    assert len({each.tobytes() for each in epochs}) == 3
    assert np.array_equal(order(1).numpy(), epochs[1])
    if count == 4:  # all lanes have full batches in the first half
        used = [set[int]() for _ in range(count)]
        for batch in range(n // (2 * batch_size)):
            found = set(find_blocks(blocks, epochs[0][batch * batch_size : (batch + 1) * batch_size]).tolist())
            assert len(found) <= 2 * window, "a batch may reach into the next window"
            used[batch % count] |= found
        assert all(not one & other for one, other in itertools.combinations(used, 2))


def test_images_of_a_window_are_mixed() -> None:
    blocks = Blocks(np.arange(1, 101) * 10, 10, "")
    order = ImageOrder(1000, SEED, blocks, Lanes(1, 10))(0).numpy()
    for start in range(0, 1000, 100):
        found = find_blocks(blocks, order[start : start + 100])
        assert len(np.unique(found)) == 10
        assert np.abs(np.diff(found.astype(int)) == 0).mean() < 0.3, "neighbours come from any of the ten blocks"
    first = find_blocks(blocks, order[:100])
    assert first.max() - first.min() > 50, "the blocks of a window are from everywhere"


def test_a_block_is_read_by_one_process_of_all_ranks() -> None:
    blocks, (world_size, workers, batch_size) = make_blocks(200, 3), (2, 2, 4)
    n, lanes = int(blocks.ends[-1]), Lanes(world_size * workers, batch_size)
    reads = 0
    for rank in range(world_size):
        order = ImageOrder(n, SEED, blocks, lanes)
        shard = list(ShuffledShard(n, SEED, Ranks(rank, world_size), batch_size, order=order))
        kept = [OrderedDict[int, None]() for _ in range(workers)]
        for number, start in enumerate(range(0, len(shard), batch_size)):
            mine = kept[number % workers]  # the loader deals batches in turn
            for block in find_blocks(blocks, np.array(shard[start : start + batch_size])).tolist():
                reads += block not in mine
                mine[block] = mine.pop(block, None)
                while len(mine) > blocks.window:
                    mine.popitem(last=False)
    assert 200 <= reads <= 1.15 * 200, "some again where batches reach into the next window, and at the epoch's end"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_is_resumed_on_other_lanes_with_every_image_once(world_size: int) -> None:
    blocks, batch_size = make_blocks(), 4
    n = int(blocks.ends[-1])
    before = ImageOrder(n, SEED, blocks, Lanes(4, batch_size))
    seen = 40
    done = before(5)[:seen].tolist()
    kept = read_lanes({"epoch": 5} | before.state_dict(5))
    after = ImageOrder(n, SEED, blocks, Lanes(world_size, 2), kept)
    rest = []
    for rank in range(world_size):
        shard = ShuffledShard(n, SEED, Ranks(rank, world_size), 2, 5, seen, order=after)
        rest += list(shard)
    missing = set(range(n)) - set(done) - set(rest)
    assert len(done) + len(rest) == len({*done, *rest})
    assert len(missing) < world_size  # as in every dataset
    assert torch.equal(after(5), before(5))
    assert not torch.equal(after(6), before(6))
    assert after.state_dict(5) == before.state_dict(5)
    assert after.state_dict(6) == {"lanes": [world_size, 2]}
