"""Averages of any length: their weights, and the least-squares combination of kept ones."""

import math

import numpy as np
import pytest

from lightning_ddpm.models.power_average import Profile, combine_profiles, get_share, solve_exponent
from lightning_ddpm.utils.errors import UserError


def weigh_steps(profile: Profile, last: int) -> np.ndarray:
    """Return the weight of each step 1..last in an average, by the recursion of its updates."""
    weights = np.zeros(last)
    for step in range(1, profile.step + 1):
        share = get_share(step, profile.gamma)
        weights *= 1 - share
        weights[step - 1] += share
    return weights


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.1, 6.94), (0.15, 3.56)])
def test_the_exponents_are_those_of_the_paper(sigma_rel: float, gamma: float) -> None:
    """Karras et al. 2024, section 3.1: gamma = 6.94 and 16.97 for 10 and 5 per cent."""
    assert solve_exponent(sigma_rel) == pytest.approx(gamma, abs=0.01)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_the_updates_weight_the_steps_by_a_power_whose_standard_deviation_is_sigma_rel(sigma_rel: float) -> None:
    steps, gamma = 2000, solve_exponent(sigma_rel)
    weights = weigh_steps(Profile(steps, gamma), steps)
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)  # the integral of tau^gamma
    np.testing.assert_allclose(weights, np.diff(edges), atol=1e-12)
    times = (np.arange(steps) + 0.5) / steps
    mean = weights @ times
    assert math.sqrt(weights @ (times - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.07, 0.15, 0.25])
def test_the_combination_is_the_least_squares_solution_over_the_steps(sigma_rel: float) -> None:
    """Against a solution that forms no inner product: numpy's, of the weights of all steps."""
    steps, every = 1200, 150
    basis = [Profile(t, solve_exponent(each)) for t in range(every, steps + 1, every) for each in (0.05, 0.1)]
    wanted = Profile(steps, solve_exponent(sigma_rel))
    found = combine_profiles(basis, wanted)
    assert found.weights.sum() == pytest.approx(1, abs=1e-9)
    columns, target = np.stack([weigh_steps(each, steps) for each in basis], 1), weigh_steps(wanted, steps)
    heavy = 1e3  # a row that makes the sum of the weights 1
    rows = np.concatenate([columns * math.sqrt(steps), np.full((1, len(basis)), heavy)])
    expected = np.linalg.lstsq(rows, np.append(target * math.sqrt(steps), heavy), rcond=None)[0]
    np.testing.assert_allclose(columns @ found.weights, columns @ expected, atol=2e-5)
    error = np.linalg.norm(columns @ found.weights - target) / np.linalg.norm(target)
    assert found.error == pytest.approx(error, abs=2e-3)


def test_an_average_that_was_kept_is_itself() -> None:
    basis = [Profile(t, solve_exponent(each)) for t in (10, 20, 30) for each in (0.05, 0.1)]
    for index, each in enumerate(basis[-2:], start=4):
        found = combine_profiles(basis, each)
        np.testing.assert_allclose(found.weights, np.eye(6)[index], atol=1e-8)
        assert found.error < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, math.nan, math.inf])
def test_a_length_that_does_not_exist_is_refused(sigma_rel: float) -> None:
    with pytest.raises(UserError, match=r"must lie in \[1e-06, 0\.28\], got .*; Karras"):
        solve_exponent(sigma_rel)
