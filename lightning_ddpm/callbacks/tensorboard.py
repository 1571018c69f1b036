"""The run's curves in TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


class RunLogger(TensorBoardLogger):
    """Curves over optimizer steps done, in the run's folder itself; a resumed run goes on with them.

    What a killed process drew after its last checkpoint is taken back: those steps are done again.

    Args:
        folder: of the run.
        step: after which the run goes on; 0 for a new one.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        purge: Any = {"purge_step": step + 1}
        super().__init__(folder, name="", version="", default_hp_metric=False, **purge)
        self._drawn: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Draw values once a step; Lightning calls the first step 0, and so do its other loggers."""
        done = (step or 0) + 1
        new = {name: value for name, value in metrics.items() if self._drawn.get(name) != done}
        self._drawn.update(dict.fromkeys(new, done))
        super().log_metrics(new, done)


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """TensorBoard's own writers, for pictures and texts; none on ranks other than the first."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
