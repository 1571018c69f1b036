"""Snapshots of averaged weights in a run's folder, and averages of other lengths that are made from them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ddpm.models.power_average import Profile, combine_profiles, solve_exponent
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import write_atomically
from lightning_ddpm.utils.run_files import SNAPSHOTS
from lightning_ddpm.utils.torch_files import copy_to_host, read_torch_file, save_with_digest

NAME = re.compile(r"step-(\d{7,})-sigma_rel-(0\.\d+)\.pt")

DIGITS = 6
"""Decimal digits of sigma_rel in the names of files."""


class Snapshot(NamedTuple):
    """An average of the weights in a file.

    Attributes:
        path: the file.
        step: the number of optimizer steps that are averaged.
        sigma_rel: the length of the average.
    """

    path: Path
    step: int
    sigma_rel: float

    @property
    def profile(self) -> Profile:
        """How much each step counts."""
        return Profile(self.step, solve_exponent(self.sigma_rel))


class Reconstruction(NamedTuple):
    """An average made from snapshots.

    Attributes:
        weights: the parameters by name, float32.
        step: the number of optimizer steps that are averaged.
        error: the distance of its profile from the requested one, as a share of that one's norm.
        snapshots: the number of files that it was made from.
    """

    weights: dict[str, Tensor]
    step: int
    error: float
    snapshots: int


def write_snapshot(folder: Path, step: int, sigma_rel: float, weights: Mapping[str, Tensor]) -> None:
    """Write an average into the run's folder.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    path = folder / SNAPSHOTS / f"step-{step:07d}-sigma_rel-{format_length(sigma_rel)}.pt"
    write_atomically(path, partial(save_with_digest, copy_to_host({"step": step, "weights": dict(weights)})))


def format_length(sigma_rel: float) -> str:
    """Return sigma_rel as it stands in the names of files, without an exponent."""
    return f"{sigma_rel:.{DIGITS}f}".rstrip("0")


def list_snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots of the run in a folder, by step; none where it has no such files."""
    found = [(each, NAME.fullmatch(each.name)) for each in (folder / SNAPSHOTS).glob("*.pt")]
    return sorted(
        (Snapshot(path, int(name[1]), float(name[2])) for path, name in found if name), key=lambda each: each[1:]
    )


def remove_later(folder: Path, step: int) -> None:
    """Delete the snapshots after a step: a run that is resumed from there writes them again."""
    for each in list_snapshots(folder):
        if each.step > step:
            each.path.unlink()


def reconstruct(folder: Path, sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Return the average of a length after a step, by least squares of the snapshots until then.

    Args:
        folder: the run's.
        sigma_rel: the length.
        step: one that a snapshot was written after; ``None`` for the last one that has those of all lengths.

    Raises:
        UserError: there are no snapshots, none after that step, or one that cannot be read.
    """
    every = list_snapshots(folder)
    if not every:
        raise UserError(
            f"{folder} has no snapshots of averaged weights; train with the callback PostHocEMA, "
            "--trainer.callbacks+ PostHocEMA --trainer.callbacks.PostHocEMA.every_n_steps N"
        )
    steps = sorted({each.step for each in every})
    step = _find_last_step(every) if step is None else step
    if step not in steps:
        raise UserError(f"{folder} has no snapshot after step {step}; it has those of {', '.join(map(str, steps))}")
    basis = [each for each in every if each.step <= step]
    combination = combine_profiles([each.profile for each in basis], Profile(step, solve_exponent(sigma_rel)))
    return Reconstruction(_add(basis, combination.weights.tolist()), step, combination.error, len(basis))


def _find_last_step(snapshots: Sequence[Snapshot]) -> int:
    """Return the last step of which there are all lengths: the files of a step are written one after the other."""
    lengths = Counter(each.step for each in snapshots)
    return max(step for step, n in lengths.items() if n == max(lengths.values()))


def _add(snapshots: Sequence[Snapshot], factors: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted sum, in float64 with one file in memory at a time."""
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(snapshots, factors, strict=True):
        content = read_torch_file(snapshot.path, "a snapshot of averaged weights")
        weights = content.get("weights") if isinstance(content, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
            raise UserError(f"{snapshot.path} is no snapshot of averaged weights; move it elsewhere")
        shapes = {name: each.shape for name, each in weights.items()}
        total = total or {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        if content.get("step") != snapshot.step or shapes != {name: each.shape for name, each in total.items()}:
            raise UserError(f"{snapshot.path} is of another run or step than its name states; move it elsewhere")
        for name, each in weights.items():
            total[name].add_(each, alpha=factor)
    return {name: each.float() for name, each in total.items()}
