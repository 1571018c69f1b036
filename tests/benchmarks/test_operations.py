"""What the benchmarks count as operations, and the losses of bf16 beside float32."""

from pathlib import Path

import pytest
from helpers.command_line import REPOSITORY

pytest.importorskip("diffusers")
pytest.importorskip("greenlet")
import torch
from torch.nn import functional

from benchmarks import counts, precision_parity
from benchmarks.operations import Count
from benchmarks.training import write_noise_images

LAST = torch.channels_last


def test_operations_and_their_bytes_are_counted_and_views_are_not() -> None:
    x, y = torch.ones(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    with Count(2) as count:
        (x.flatten(1).unflatten(1, (4, 8, 8))[:, :2].detach(), torch.empty(5))
        x.add_(y)
        x + y
    assert count.found["operations"] == 2
    assert count.found["bytes"] == 2 * 3 * 4 * x.numel()


def test_conversions_reads_and_changes_of_layout_are_counted() -> None:
    x, weight, counter = torch.ones(2, 4, 8, 8), torch.ones(4, 4, 3, 3), torch.ones(())
    with Count(2, [counter]) as count:
        half, small = x.bfloat16(), weight.bfloat16()
        assert (count.found["conversions"], count.found["activations"]) == (2, 1)
        functional.conv2d(half, small)
        assert (count.found["nchw"], count.found["layouts"]) == (1, 0)
        functional.conv2d(half, small.contiguous(memory_format=LAST))
        assert (count.found["nchw"], count.found["layouts"]) == (1, 2), "the weight's copy, and the image within cuDNN"
        last = x.contiguous(memory_format=LAST)
        assert functional.group_norm(last, 2).is_contiguous(), "as on a GPU"
        assert count.found["layouts"] == 4
        (float(counter), float(x.sum()))
    assert count.found["reads"] == 1, "EMA's counter is on the host"


def test_counts_of_two_and_four_images_give_those_of_any_batch() -> None:
    assert counts.scale(7 + 2 * 3, 7 + 4 * 3) == 7 + counts.BATCH * 3


@pytest.mark.slow
def test_a_step_of_fit_in_bfloat16_converts_no_block_and_reads_nothing(tmp_path: Path) -> None:
    images = write_noise_images(tmp_path, 16, 3, 32)
    found = counts.count_step(REPOSITORY, images, tmp_path, 2, "bf16-mixed", [], width=16, groups=8)  # slow in bf16
    train = found["train"]
    assert train["operations"] > 500
    assert train["activations"] < 10, "232 with torch's GroupNorm"
    assert train["reads"] == 0
    assert 0 < found["DDIM"]["operations"] < 50


@pytest.mark.slow
def test_losses_in_bfloat16_follow_those_in_float32_within_a_thousandth() -> None:
    losses = {
        name: torch.tensor(precision_parity.train(*variant, seed=0, steps=4)["losses"])
        for name, variant in precision_parity.VARIANTS.items()
    }
    exact = losses.pop(precision_parity.FLOAT32)
    for name, found in losses.items():
        assert len(found) == 4
        difference = (found / exact - 1).abs()
        assert 0 < difference.max() < 1e-3, name
