"""Compares a run's curves with those of many runs of the same config, and reports when it leaves their band."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.shipped import CURVES

SIDES = ("low", "high")
"""Names of a band's limits."""


@dataclass(frozen=True)
class Band:
    """Where other runs' curves lie.

    Attributes:
        config: name of their config.
        seeds: their number.
        limits: the lowest and the highest usual value of each metric, by the number of steps done.
    """

    config: str
    seeds: int
    limits: Mapping[str, Mapping[int, tuple[float, float]]]

    @classmethod
    def read(cls, file: Path) -> "Band":
        """Read a file that ``python -m benchmarks golden_curves write`` made.

        Raises:
            UserError: it is no such file.
        """
        try:
            return cls.parse(json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{file} holds no reference curves ({first_line(error)}); "
                "python -m benchmarks golden_curves makes such files"
            ) from error

    @classmethod
    def parse(cls, facts: Mapping[str, Any]) -> "Band":
        """Return the band that a file's content describes."""
        limits = {name: _read_curve(**curve) for name, curve in facts["curves"].items()}
        return cls(str(facts["config"]), len(facts["seeds"]), limits)

    def find_exit(self, points: Mapping[tuple[str, int], float]) -> tuple[str, int] | None:
        """Return the metric and step at which a curve first leaves the band; ``None`` if all stay inside.

        Args:
            points: values by metric and number of steps done.
        """
        outside = [
            (step, name)
            for (name, step), value in points.items()
            for low, high in self.find_limits({name: value}, step).values()
            if not low <= value <= high
        ]
        return min(outside)[::-1] if outside else None

    def find_limits(self, metrics: Mapping[str, float], step: int) -> dict[str, tuple[float, float]]:
        """Return the limits of those of the metrics that have any at this step."""
        found = {name: self.limits[name].get(step) for name in metrics if name in self.limits}
        return {name: limits for name, limits in found.items() if limits}


def _read_curve(step: Sequence[int], low: Sequence[float], high: Sequence[float]) -> dict[int, tuple[float, float]]:
    limits = zip(map(float, low), map(float, high), strict=True)
    return dict(zip(map(int, step), limits, strict=True))


class ReferenceCurves(Callback):
    """Logs the band of other runs' curves beside this run's own, and reports once when one of these leaves it.

    The band is computed from runs of one config that differ by their seed (benchmarks/golden_curves.py); one run in
    twenty leaves it by chance. TensorBoard's page "custom scalars" shows each metric within its band.

    Args:
        file: a file of curves, or the name of a config that has one among those that ship.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.band = Band.read(CURVES.find(file) or resolve_path(file))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        others = [each for each in trainer.loggers if not isinstance(each, _Comparison)]
        if stage == "fit":
            trainer.loggers = [*others, _Comparison(self.band, others)]


class _Comparison(Logger):
    """Compares what is logged with the band, and logs the band's limits."""

    def __init__(self, band: Band, others: Sequence[Logger]) -> None:
        super().__init__()
        self._band, self._others = band, list(others)
        self._reported = self._described = False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Compare the metrics with the band at this step, counted from 0 as Lightning does."""
        done = (step or 0) + 1
        limits = self._band.find_limits(metrics, done)
        exits = self._band.find_exit({(name, done): float(metrics[name]) for name in limits})
        if exits and not self._reported:
            self._reported = True
            name, _ = exits
            low, high = limits[name]
            report(
                f"{name} is {metrics[name]:.4g} at step {done}, outside {low:.4g} to {high:.4g}, where "
                f"{self._band.seeds} runs of configs/{self._band.config}.yaml were: this run is not like them"
            )
        if limits:
            self._show_limits(limits, step)

    def _show_limits(self, limits: Mapping[str, tuple[float, float]], step: int | None) -> None:
        shown = {
            f"band/{name}/{side}": each for name, both in limits.items() for side, each in zip(SIDES, both, strict=True)
        }
        for logger in self._others:
            if isinstance(logger, TensorBoardLogger):
                if not self._described:
                    logger.experiment.add_custom_scalars(self._describe_charts())
                logger.log_metrics(shown, step)
        self._described = True

    def _describe_charts(self) -> dict[str, Any]:
        charts = {name: ["Margin", [name, *(f"band/{name}/{side}" for side in SIDES)]] for name in self._band.limits}
        return {f"{self._band.seeds} other runs of configs/{self._band.config}.yaml": charts}
