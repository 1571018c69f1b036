"""Logs the run's curves to TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_ddpm.data.image_io import save_image


class RunLogger(TensorBoardLogger):
    """Logs curves over the number of optimizer steps done, in the run's folder itself; a resumed run continues them.

    Points that a killed process logged after its last checkpoint are removed, because those steps are done again.
    Points at the checkpoint's step stay, and a metric that is measured again there is not logged twice.

    Args:
        folder: the run's folder.
        step: the step after which the run resumes; 0 for a new one.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        purge: Any = {"purge_step": step + 1}
        super().__init__(folder, name="", version="", default_hp_metric=False, **purge)
        self._folder, self._step = folder, step
        self._logged: dict[str, int] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log each metric once per step, from step 1 on, where Lightning counts from 0; its ``epoch`` is omitted."""
        done = (step or 0) + 1
        if self._logged is None:
            self._logged = _find_logged_tags(self._folder, self._step)
        new = {name: value for name, value in metrics.items() if name != "epoch" and self._logged.get(name) != done}
        self._logged.update(dict.fromkeys(new, done))
        super().log_metrics(new, done)


def _find_logged_tags(folder: Path, step: int) -> dict[str, int]:
    """Return the curves with a point at this step, each mapped to the step."""
    if not step:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    events: Any = EventAccumulator(str(folder), {"scalars": 0, "images": 1})
    events.Reload()
    return {tag: step for tag in events.Tags()["scalars"] if any(each.step == step for each in events.Scalars(tag))}


def get_writers(trainer: Trainer) -> list[SummaryWriter]:
    """Return TensorBoard's own writers, for images and texts; none on ranks other than the first."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_image(trainer: Trainer, image: Tensor, file: str, tag: str) -> None:
    """Save an image as a PNG file in the run's folder, and log it to TensorBoard; for the first rank.

    Args:
        trainer: the run.
        image: (c, H, W) uint8.
        file: path within the run's folder.
        tag: TensorBoard's name for it.
    """
    path = Path(trainer.default_root_dir) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image, path)
    for writer in get_writers(trainer):
        writer.add_image(tag, image, trainer.global_step)
