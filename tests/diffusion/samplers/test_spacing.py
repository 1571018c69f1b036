"""Spacings: against diffusers, by hand, and for any T and number of steps."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ddpm.diffusion import (
    quadratic_spacing,
    trailing_spacing,
    uniform_spacing,
)
from lightning_ddpm.utils.errors import UserError


@pytest.mark.parametrize(("spacing", "name"), [(uniform_spacing, "linspace"), (trailing_spacing, "trailing")])
def test_spacings_equal_diffusers(spacing: Callable[[int, int], list[int]], name: str) -> None:
    compared = 0
    for steps in range(2, 1001):  # diffusers' linspace with one step starts at t = 1
        theirs = DDIMScheduler(timestep_spacing=name)
        theirs.set_timesteps(steps)
        times = (theirs.timesteps.flip(0) + 1).tolist()
        if len(times) != steps:  # diffusers' rounding sometimes gives one step too many
            continue
        ours, compared = spacing(1000, steps), compared + 1
        for i, (our_step, other) in enumerate(zip(ours, times, strict=True)):
            # halves may be rounded up or down
            twice = 2 * 999 * i / (steps - 1) if name == "linspace" else 2 * 1000 * (i + 1) / steps
            assert our_step == other or (abs(our_step - other) == 1 and twice % 2 == 1)
    assert compared > 900


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@given(data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_spacing_increases_to_T_within_1_to_T(spacing: Callable[[int, int], list[int]], data: st.DataObject) -> None:
    T = data.draw(st.integers(1, 3000))
    times = spacing(T, data.draw(st.integers(1, T)))
    assert times[-1] == T
    assert times[0] >= 1
    assert all(earlier < later for earlier, later in pairwise(times))


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@pytest.mark.parametrize("T", range(1, 41))
def test_a_spacing_has_exactly_the_requested_number_of_steps(spacing: Callable[[int, int], list[int]], T: int) -> None:
    for steps in range(1, T + 1):
        times = spacing(T, steps)
        assert len(set(times)) == len(times) == steps
        assert times == sorted(times)
        assert times[-1] == T
    assert times == list(range(1, T + 1))


@pytest.mark.parametrize("spacing", [uniform_spacing, quadratic_spacing, trailing_spacing])
@pytest.mark.parametrize("steps", [0, -3, 11])
def test_a_spacing_refuses_more_than_T_steps_and_fewer_than_one(
    spacing: Callable[[int, int], list[int]], steps: int
) -> None:
    with pytest.raises(UserError, match=re.escape("must lie in 1..10 (the schedule's T)")):
        spacing(10, steps)


def test_trailing_spacing_has_equal_gaps_from_0() -> None:
    assert trailing_spacing(1000, 4) == [250, 500, 750, 1000]
    assert trailing_spacing(10, 3) == [3, 7, 10]
    assert trailing_spacing(1000, 1) == [1000]


def test_uniform_spacing_has_equal_and_quadratic_spacing_growing_gaps() -> None:
    assert uniform_spacing(1000, 4) == [1, 334, 667, 1000]
    # square roots at 1, 1 + g, 1 + 2g, 1 + 3g with g = (sqrt(1000) - 1) / 3 = 10.2076
    assert quadratic_spacing(1000, 4) == [1, 126, 459, 1000]
    gaps = torch.tensor(quadratic_spacing(1000, 20)).diff()
    assert (gaps.diff() > 0).all()
    assert uniform_spacing(1000, 100) != quadratic_spacing(1000, 100)
