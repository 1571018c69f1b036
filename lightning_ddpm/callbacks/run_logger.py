"""The run's curves in TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


class RunLogger(TensorBoardLogger):
    """Curves over optimizer steps done, in the run's folder itself; a resumed run goes on with them.

    What a killed process drew after its last checkpoint is taken back: those steps are done again. What it drew at that
    step stays, and is not drawn twice where it is measured again.

    Args:
        folder: of the run.
        step: after which the run goes on; 0 for a new one.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        purge: Any = {"purge_step": step + 1}
        super().__init__(folder, name="", version="", default_hp_metric=False, **purge)
        self._folder, self._step = folder, step
        self._drawn: dict[str, int] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Draw values once a step; Lightning calls the first step 0, and so do its other loggers."""
        done = (step or 0) + 1
        if self._drawn is None:
            self._drawn = _find_logged_tags(self._folder, self._step)
        new = {name: value for name, value in metrics.items() if self._drawn.get(name) != done}
        self._drawn.update(dict.fromkeys(new, done))
        super().log_metrics(new, done)


def _find_logged_tags(folder: Path, step: int) -> dict[str, int]:
    """The curves with a point at this step, which is the value of every key."""
    if not step:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    events: Any = EventAccumulator(str(folder), {"scalars": 0, "images": 1})
    events.Reload()
    return {tag: step for tag in events.Tags()["scalars"] if any(each.step == step for each in events.Scalars(tag))}


def get_writers(trainer: Trainer) -> list[SummaryWriter]:
    """TensorBoard's own writers, for pictures and texts; none on ranks other than the first."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
