"""Spacings: which of the T timesteps a sampler with fewer steps visits.

A spacing returns an increasing subsequence of 1..T that always ends at T, where sampling starts.
"""

from collections.abc import Callable

from lightning_ddpm.utils.errors import UserError

Spacing = Callable[[int, int], list[int]]
"""(T, number of steps) -> that many increasing timesteps in 1..T."""


def uniform_spacing(T: int, steps: int) -> list[int]:
    """Return timesteps with equal gaps from 1 to T; ``linear`` in Song et al. 2021, appendix D.2."""
    return _make_increasing(T, steps, lambda i: 1 + round((T - 1) * i / max(steps - 1, 1)))


def quadratic_spacing(T: int, steps: int) -> list[int]:
    """Return timesteps whose gaps grow with t, so that most steps go to fine detail; Song et al. 2021, appendix D.2."""
    return _make_increasing(T, steps, lambda i: (1 + (T**0.5 - 1) * i / max(steps - 1, 1)) ** 2)


def trailing_spacing(T: int, steps: int) -> list[int]:
    """Return timesteps with equal gaps from 0 (not visited) to T; Lin et al. 2023 (arXiv:2305.08891), table 2."""
    return _make_increasing(T, steps, lambda i: T * (i + 1) / steps)


def _make_increasing(T: int, steps: int, place: Callable[[int], float]) -> list[int]:
    """Round the places of steps 0, 1, ... to distinct timesteps, the last one T."""
    if not 1 <= steps <= T:
        raise UserError(f"the number of sampling steps must lie in 1..{T} (the schedule's T), got {steps}")
    times: list[int] = []
    for i in range(steps):
        times.append(max(round(place(i)), times[-1] + 1 if times else 1))
    return [*times[:-1], T]
