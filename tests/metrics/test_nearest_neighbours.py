"""The search for nearest training images against brute force."""

import sys

import pytest
import torch
from helpers.brute_force import brute_force
from helpers.command_line import REPOSITORY, run
from torch import Tensor

from lightning_ddpm.metrics.nearest_neighbours import NearestNeighbours, NeighbourDistances
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.random import make_generator


def normal(n: int, d: int, index: int) -> Tensor:
    return torch.randn(n, d, generator=make_generator("cpu", "test", index=index))


def search(queries: Tensor, stream: Tensor, k: int, block: int, world_size: int = 1) -> tuple[Tensor, Tensor]:
    """Distribute blocks of the stream over the ranks, and return what the first rank gathers."""

    def on(rank: int) -> NearestNeighbours:
        nearest = NearestNeighbours(queries, k)
        for start in range(0, len(stream), block)[rank::world_size]:
            nearest.update(start, stream[start : start + block])
        return nearest

    parts: list[Tensor] = []
    for rank in range(world_size):
        on(rank).gather(Ranks(rank, world_size, lambda part: parts.append(part.clone()) or part))  # type: ignore[func-returns-value]
    return on(0).gather(Ranks(0, world_size, lambda part: torch.stack(parts).sum(0)))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("block", [1, 7, 50, 64, 100, 1000])
def test_the_search_agrees_with_brute_force_for_all_block_sizes(block: int, world_size: int) -> None:
    queries, stream = normal(20, 5, 0), normal(100, 5, 1)
    distances, indices = search(queries, stream, 4, block, world_size)
    expected, which = brute_force(queries, stream, 4)
    assert torch.equal(indices, which)
    assert distances.dtype == torch.float64
    torch.testing.assert_close(distances, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_equal_distances_are_ordered_by_index_on_any_number_of_ranks(block: int, world_size: int) -> None:
    stream = normal(90, 3, 2).round()  # 90 points of a small grid: many are equal, and many distances too
    queries = normal(30, 3, 3).round()
    distances, indices = search(queries, stream, 6, block, world_size)
    expected, which = brute_force(queries, stream, 6)
    assert (distances[:, 1:] == distances[:, :-1]).any()
    assert torch.equal(indices, which)
    assert torch.equal(distances, expected)


def test_blocks_may_arrive_in_any_order_and_hold_only_k_images() -> None:
    queries, stream = normal(3, 2, 4), normal(4, 2, 5).round()
    nearest = NearestNeighbours(queries, 4)
    for start in (3, 0, 2, 1):
        nearest.update(start, stream[start : start + 1])
    distances, indices = nearest.gather(Ranks())
    expected, which = brute_force(queries, stream, 4)
    assert torch.equal(indices, which)
    torch.testing.assert_close(distances, expected, rtol=1e-14, atol=0)


def test_small_distances_between_large_vectors_are_exact() -> None:
    stream = 10000 + normal(100, 4, 6).round()
    distances, _ = search(stream[:10] + 2**-9, stream, 1, 64)  # |a|^2 - 2ab + |b|^2 is off by percents here
    assert distances.flatten().tolist() == [2**-8] * 10


FLAT_MEMORY = """
import torch
from benchmarks.report import peak_megabytes
from helpers.big_dataset import Big, pixels_as_they_are
from lightning_ddpm.metrics import find_nearest
from lightning_ddpm.utils.distributed import Ranks
images = torch.zeros(8, 3 * 64 * 64)
peaks = []
for n in (3200, 6400):
    find_nearest(pixels_as_they_are(3 * 64 * 64), images, 4, Big(n), Big(8), Ranks(),
                 lambda batches, total: (batch for _, batch in batches))
    peaks.append(peak_megabytes(of_the_process=True))
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_training_set() -> None:
    # Without this limit glibc keeps up to 20 MB of freed memory, at varying times.
    environment = {
        "PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY}",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    ended = run(sys.executable, "-c", FLAT_MEMORY, **environment)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 15  # MB; 3,200 more images are 39 MB and their features 157


def test_the_share_counts_images_within_the_quantile_of_held_out_images() -> None:
    held_out = torch.arange(101.0, dtype=torch.float64)  # within 5 lie 6 of 101
    distances = torch.tensor([[0.0], [5.0], [5.1], [80.0]], dtype=torch.float64)
    found = NeighbourDistances(distances, torch.zeros(4, 1, dtype=torch.long), held_out)
    assert found.near == pytest.approx(5.0)
    assert found.share == 0.5
    few = NeighbourDistances(distances, found.indices, held_out[:19])
    assert few.near is None
    assert few.share is None
