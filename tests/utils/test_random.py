"""Random numbers depend on purpose, key and index alone, and noise on the image's index, not on its batch."""

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.fake_gpu import GPU, fake_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ddpm.utils.random import GPU_VALUES, ImageNoise, get_run_seed, make_generator, seed_globally

SHAPE = (3, 5, 5)


def noises(seed: int, start: int, stop: int, calls: int = 3) -> Tensor:
    """Return the noise of several calls, (calls, stop - start, *SHAPE)."""
    source = ImageNoise(seed, start, stop)
    return torch.stack([source(torch.empty(stop - start, *SHAPE)) for _ in range(calls)])


@pytest.fixture(scope="module")
def one_by_one() -> Tensor:
    return torch.cat([noises(0, i, i + 1) for i in range(64)], dim=1)


@pytest.mark.parametrize("batch", [7, 16, 64])
def test_an_image_gets_the_same_noise_in_a_batch_of_any_size(one_by_one: Tensor, batch: int) -> None:
    for start in range(0, 64, batch):
        stop = min(start + batch, 64)
        assert torch.equal(noises(0, start, stop), one_by_one[:, start:stop])


@given(ends=st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_image_gets_the_same_noise_wherever_its_batch_starts(one_by_one: Tensor, ends: list[int]) -> None:
    start, stop = sorted(ends)
    assert torch.equal(noises(0, start, stop), one_by_one[:, start:stop])


def test_images_of_large_indices_get_the_same_noise_in_any_batch() -> None:
    assert torch.equal(noises(0, 49_999, 50_000), noises(0, 49_930, 50_000)[:, -1:])


class CountNormal(TorchDispatchMode):
    """Records how many values each call generates."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.randn.generator):
            self.sizes.append(args[0].numel() if isinstance(args[0], Tensor) else math.prod(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("size", "calls"), [(28, 1), (32, 2), (64, 5), (256, 77)])
def test_no_call_generates_more_values_than_a_small_gpu_has_threads(size: int, calls: int) -> None:
    channels = 1 if size == 28 else 3
    with fake_gpu(), CountNormal() as counted:
        noise = ImageNoise(0, 0, 16)(torch.empty(16, channels, size, size, device=GPU))
    assert noise.shape == (16, channels, size, size)
    assert len(counted.sizes) == calls
    assert max(counted.sizes) <= GPU_VALUES
    assert sum(counted.sizes) == noise.numel()


def test_on_a_cpu_a_block_is_one_call_of_randn() -> None:
    like = torch.empty(16, 3, 64, 64)
    generator = make_generator("cpu", "image", 5, index=2)
    assert torch.equal(ImageNoise(5, 32, 48)(like), torch.randn(16, 3, 64, 64, generator=generator))


def fill_as_a_gpu(numel: int, threads: int) -> list[tuple[int, int, int]]:
    """Return (thread, its call, place in the call) of each value, as torch's kernel fills a tensor on a GPU.

    ``distribution_elementwise_grid_stride_kernel`` in ATen/native/cuda/DistributionTemplates.h, with blocks of 256
    threads and four values a call.
    """
    grid = min(threads // 256, -(-numel // 256)) * 256
    filled: list[tuple[int, int, int]] = [(-1, -1, -1)] * numel
    for thread in range(grid):
        for call, start in enumerate(range(thread, numel, 4 * grid)):
            for place in range(4):
                if start + grid * place < numel:
                    filled[start + grid * place] = thread, call, place
    return filled


def test_the_values_of_a_part_do_not_depend_on_the_gpu_and_those_of_more_do() -> None:
    t4, h200 = 40 * 1024, 132 * 2048
    assert fill_as_a_gpu(GPU_VALUES, t4) == fill_as_a_gpu(GPU_VALUES, h200)
    assert fill_as_a_gpu(16 * 3 * 32 * 32, t4) != fill_as_a_gpu(16 * 3 * 32 * 32, h200)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_large_noise_on_a_gpu_is_made_of_parts_that_every_gpu_generates_alike() -> None:
    properties = torch.cuda.get_device_properties(0)
    assert properties.multi_processor_count * properties.max_threads_per_multi_processor >= GPU_VALUES
    noise = ImageNoise(0, 0, 16)(torch.empty(16, 3, 64, 64, device="cuda")).flatten()
    generator = make_generator("cuda", "image", 0)
    for start in range(0, len(noise), GPU_VALUES):
        part = noise[start : start + GPU_VALUES]
        assert torch.equal(part, torch.randn(len(part), generator=generator, device="cuda"))


def test_every_image_call_and_seed_has_its_own_noise(one_by_one: Tensor) -> None:
    others = noises(1, 0, 64)
    firsts = torch.cat([one_by_one, others]).flatten(2)[..., 0].flatten()
    assert len(firsts.unique()) == 2 * 3 * 64


def test_the_noise_is_standard_normal_and_uncorrelated_between_neighbours() -> None:
    noise = noises(0, 0, 1000, calls=2).double().flatten(2)  # 2 x 1000 x 75
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=4 / n**0.5)
    assert noise.var().item() == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
    assert (noise[:, 1:] * noise[:, :-1]).mean().item() == pytest.approx(0, abs=4 / n**0.5)
    assert (noise[0] * noise[1]).mean().item() == pytest.approx(0, abs=4 / (n / 2) ** 0.5)
    # consecutive blocks of 16 have neighbouring seeds
    assert (noise[:, 16:] * noise[:, :-16]).mean().item() == pytest.approx(0, abs=4 / n**0.5)


def test_noise_has_the_dtype_and_shape_of_the_argument() -> None:
    noise = ImageNoise(0, 3, 5)(torch.empty(2, 1, 4, 6, dtype=torch.float64))
    assert noise.dtype == torch.float64
    assert noise.shape == (2, 1, 4, 6)


def test_the_global_generator_is_neither_read_nor_changed() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = noises(0, 0, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, noises(0, 0, 2))


def sample(*arguments: object, index: int = 0) -> float:
    return torch.rand((), generator=make_generator("cpu", *arguments, index=index)).item()  # type: ignore[arg-type]


def test_a_generator_is_a_function_of_its_arguments() -> None:
    assert sample("train", 1, 2, index=3) == sample("train", 1, 2, index=3)


def test_generators_of_another_purpose_key_or_index_differ() -> None:
    keys = list(itertools.product(["train", "validate"], [0, 1, 2], [0, 1, 2], range(20)))
    assert len({sample(purpose, seed, rank, index=index) for purpose, seed, rank, index in keys}) == len(keys)
    assert sample("train", 1, 0) != sample("train", 10)
    assert sample("train") != sample("train", 0)


def test_indices_never_collide() -> None:
    seeds = {make_generator("cpu", "train", 0, 0, index=index).initial_seed() for index in range(50_000)}
    assert len(seeds) == 50_000


@given(key=st.integers(0, 2**63), indices=st.sets(st.integers(0, 2**32 - 1), min_size=2, max_size=2))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_two_indices_below_2_to_32_differ_in_the_32_bits_that_the_generator_uses(key: int, indices: set[int]) -> None:
    seeds = {make_generator("cpu", "train", key, index=index).initial_seed() for index in indices}
    assert len({seed % 2**32 for seed in seeds}) == 2
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_torchs_cpu_generator_uses_only_32_bits_of_a_seed() -> None:
    """This is why the key is hashed to 32 bits; if this test ever fails, 64 bits can be used."""
    first, second = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.rand(8, generator=first), torch.rand(8, generator=second))


def test_another_process_with_another_hash_seed_generates_the_same_numbers() -> None:
    program = (
        "import torch; from lightning_ddpm.utils.random import make_generator;"
        "print(torch.rand((), generator=make_generator('cpu', 'train', 1, 2, index=3)).item())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(out) == sample("train", 1, 2, index=3)


@pytest.mark.parametrize(("value", "seed"), [("7", 7), (None, 0)])
def test_the_seed_of_the_run_is_that_of_seed_everything(
    monkeypatch: pytest.MonkeyPatch, value: str | None, seed: int
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if value is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", value)
    assert get_run_seed() == seed


def test_seeded_dropout_depends_on_key_and_index_and_the_global_generator_is_restored() -> None:
    ones, drop = torch.ones(1000), torch.nn.Dropout(0.5)

    def mask(*key: int, index: int) -> torch.Tensor:
        with seed_globally(torch.device("cpu"), "dropout", *key, index=index):
            return drop(ones)

    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = mask(0, 0, index=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(first, mask(0, 0, index=5))
    for other in (mask(0, 0, index=6), mask(0, 1, index=5), mask(1, 0, index=5)):
        assert 0.4 < (first == other).float().mean() < 0.6
