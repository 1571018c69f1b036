"""Generated images are, up to rounding, the same on any number of ranks and for any batch size."""

from collections.abc import Collection

import pytest
import torch
from helpers.command_line import REPOSITORY
from helpers.images import stacked
from helpers.tiny import tiny_model
from torch import Tensor

from lightning_ddpm.data.sharding import split_evenly, split_ranges
from lightning_ddpm.diffusion import DDIM, Ancestral, FixedSmall, Sampler
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.distributed import Ranks

SAMPLERS = [DDIM(steps=3), DDIM(steps=3, eta=1.0), Ancestral(FixedSmall(), steps=5)]


def collect(
    model: DDPM, n: int, batch_size: int, world_size: int = 1, seed: int = 0, done: Collection[int] | None = None
) -> dict[int, Tensor]:
    """Return the images of all ranks by index; fail if one is generated twice."""
    images: dict[int, Tensor] = {}
    for rank in range(world_size):
        for (_, start, stop), pixels in generate_batches(
            model, SampleRequest(n, seed, batch_size), Ranks(rank, world_size), done=done
        ):
            assert pixels.dtype == torch.uint8
            assert len(pixels) == stop - start
            for index, image in enumerate(pixels, start):
                assert index not in images
                images[index] = image
    return images


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_generates_the_same_images(sampler: Sampler, world_size: int) -> None:
    model = tiny_model(sampler=sampler)
    alone, together = (stacked(collect(model, 37, 5, n, done=())) for n in (1, world_size))
    assert torch.equal(alone, together), "those of a folder are identical"
    evenly = collect(model, 37, 5, world_size)
    assert sorted(evenly) == list(range(37))
    assert (alone.int() - stacked(evenly).int()).abs().max() <= 1


def test_one_rank_generates_the_same_batches_whether_or_not_a_folder_needs_them() -> None:
    model = tiny_model()
    assert torch.equal(stacked(collect(model, 37, 5)), stacked(collect(model, 37, 5, done=())))


@pytest.mark.parametrize(
    ("n", "batch_size", "world_size"),
    [(50_000, 2500, 64), (50_000, 500, 8), (50_000, 256, 7), (64, 64, 8), (5, 64, 4), (3, 64, 8), (100, 1, 3)],
)
def test_no_rank_of_an_evaluation_is_idle(n: int, batch_size: int, world_size: int) -> None:
    ranks = [Ranks(rank, world_size) for rank in range(world_size)]
    shards = [split_evenly(n, 3, batch_size, each) for each in ranks]
    before = [split_ranges(n, 3, batch_size, each) for each in ranks]
    assert sorted(index for each in shards for _, start, stop in each for index in range(start, stop)) == [*range(n)]
    images = [sum(stop - start for _, start, stop in each) for each in shards]
    sizes = {stop - start for each in shards for _, start, stop in each}
    assert max(sizes) <= batch_size
    assert max(map(len, shards)) == max(map(len, before)), "no more batches one after the other than before"
    if [len(each) for each in before] == [len(before[0])] * world_size:
        assert shards == before, "ranks that all have work keep their batches"
    else:
        assert max(images) - min(images) <= max(map(len, shards)), "at most an image for each batch"
        assert max(sizes) - min(sizes) <= 1
    assert min(images) > 0 or n < world_size


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
def test_a_single_rank_keeps_its_batches(batch_size: int) -> None:
    assert split_evenly(99, 3, batch_size, Ranks()) == split_ranges(99, 3, batch_size, Ranks())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_batch_size_changes_an_image_by_one_gray_level_at_most(sampler: Sampler) -> None:
    model = tiny_model(sampler=sampler)
    small, large = stacked(collect(model, 70, 7)), stacked(collect(model, 70, 64))
    assert (small.int() - large.int()).abs().max() <= 1
    assert len(large.flatten(1).unique(dim=0)) == 70


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", [DDIM(steps=20), Ancestral(FixedSmall(), steps=20)], ids=str)
def test_on_a_gpu_too_the_batch_size_changes_an_image_by_one_gray_level_at_most(sampler: Sampler) -> None:
    model = load(REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt").cuda()
    model.sampler = sampler
    sets = [stacked(collect(model, 64, size)).int() for size in (1, 7, 64)]
    assert max(int((each - sets[-1]).abs().max()) for each in sets) <= 1


def test_an_image_does_not_depend_on_the_number_of_images() -> None:
    model = tiny_model(sampler=SAMPLERS[1])
    few, many = stacked(collect(model, 9, 16)), stacked(collect(model, 32, 16))
    assert (few.int() - many[:9].int()).abs().max() <= 1


def test_the_seed_determines_the_images() -> None:
    model = tiny_model()
    first, again, other = (stacked(collect(model, 8, 8, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a in first for b in other)


def test_a_requested_sampler_replaces_the_model_s_own() -> None:
    model = tiny_model(sampler=DDIM(steps=2))
    requested = torch.cat([pixels for _, pixels in generate_batches(model, SampleRequest(8, sampler=DDIM(steps=7)))])
    own = torch.cat([pixels for _, pixels in generate_batches(tiny_model(sampler=DDIM(steps=7)), SampleRequest(8))])
    assert torch.equal(requested, own)
    assert not torch.equal(requested, stacked(collect(model, 8, 64)))


@pytest.mark.parametrize(("n", "batch_size", "world_size"), [(1, 7, 3), (7, 7, 2), (50, 7, 3), (64, 1, 5)])
def test_every_index_belongs_to_one_rank(n: int, batch_size: int, world_size: int) -> None:
    ranges = [each for rank in range(world_size) for each in split_ranges(n, 9, batch_size, Ranks(rank, world_size))]
    assert sorted(index for _, start, stop in ranges for index in range(start, stop)) == list(range(n))
    assert {seed for seed, _, _ in ranges} == {9}


def test_generation_uses_neither_dropout_nor_gradients_and_restores_the_mode() -> None:
    model = tiny_model()
    model.train()
    training = stacked(collect(model, 8, 8))
    assert model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(training, stacked(collect(model.eval(), 8, 8)))
    assert not model.training


def test_the_mode_is_restored_after_an_exception() -> None:
    model = tiny_model().train()
    with pytest.raises(ValueError, match="sampling steps"):
        list(generate_batches(model, SampleRequest(4, sampler=DDIM(steps=21))))  # the schedule has 20
    assert model.training
    assert torch.is_grad_enabled()


def test_each_batch_runs_in_the_given_context() -> None:
    autocast: list[bool] = []
    model = tiny_model()
    model.network.register_forward_pre_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
    list(generate_batches(model, SampleRequest(4), context=lambda: torch.autocast("cpu", torch.bfloat16)))
    assert autocast == [True, True]
    assert not torch.is_autocast_enabled("cpu")
