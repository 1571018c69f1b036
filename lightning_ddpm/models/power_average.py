"""Averages of the weights whose length is chosen after training; Karras et al. 2024 (arXiv:2312.02696), section 3.

The average of length sigma_rel after step t weights step tau <= t in proportion to tau^gamma, a profile whose standard
deviation is sigma_rel of the training so far. Snapshots of two such averages are a basis, in which any other one is
approximated by least squares of the profiles alone (their algorithm 3).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_ddpm.utils.errors import UserError

SHORTEST = 1e-6
"""Smallest sigma_rel: names of files have six of its decimal digits."""
LONGEST = 0.28
"""Largest sigma_rel: that of gamma near 0, which weights all steps equally."""


class Profile(NamedTuple):
    """The weights of the training steps in an average: p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) for tau <= t.

    Attributes:
        step: t, the number of optimizer steps done.
        gamma: the exponent.
    """

    step: int
    gamma: float


class Combination(NamedTuple):
    """An average as a sum of others.

    Attributes:
        weights: the factor of each of them; they sum to 1.
        error: the distance of their profile from the requested one, as a share of that one's norm.
    """

    weights: NDArray[np.float64]
    error: float


def check_length(sigma_rel: float) -> None:
    """Raise a UserError unless an average of this length exists."""
    if not SHORTEST <= sigma_rel <= LONGEST:
        raise UserError(
            f"sigma_rel, the length of an average as a share of training, must lie in [{SHORTEST}, {LONGEST}], got "
            f"{sigma_rel}; Karras et al. 2024 keep 0.05 and 0.1"
        )


def solve_exponent(sigma_rel: float) -> float:
    """Return gamma, for which sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); eq. 123 and algorithm 2.

    Raises:
        UserError: no average has this length.
    """
    check_length(sigma_rel)
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def get_share(step: int, gamma: float) -> float:
    """Return the share of the new weights in the average after a step, 1 - (1 - 1 / t)^(gamma + 1); eq. 2."""
    return 1.0 if step == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / step))


def combine_profiles(basis: Sequence[Profile], wanted: Profile) -> Combination:
    """Return the sum of averages that is nearest to another one.

    It is their least-squares solution, with the condition that the weights sum to 1, so that what does not change in
    training is exact.

    Args:
        basis: the averages that exist.
        wanted: the average to approximate.
    """
    t, gamma = np.array([each.step for each in basis], float), np.array([each.gamma for each in basis])
    products = _multiply(t[:, None], gamma[:, None], t, gamma) * wanted.step
    target = _multiply(t, gamma, np.array(float(wanted.step)), np.array(wanted.gamma)) * wanted.step
    ones = np.ones((len(basis), 1))
    system = np.block([[products, ones], [ones.T, np.zeros((1, 1))]])
    weights = np.linalg.lstsq(system, np.append(target, 1), rcond=None)[0][:-1]
    norm = (wanted.gamma + 1) ** 2 / (2 * wanted.gamma + 1)
    distance = norm - 2 * weights @ target + weights @ products @ weights
    return Combination(weights, math.sqrt(max(0.0, distance / norm)))


def _multiply(
    t: NDArray[np.float64], gamma: NDArray[np.float64], other_t: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the inner products of profiles, the integral of p q over their common steps; their eq. 151."""
    ratio = np.where(t < other_t, (t / other_t) ** other, (other_t / t) ** gamma)
    return (gamma + 1) * (other + 1) / (gamma + other + 1) * ratio / np.maximum(t, other_t)
