"""Logs the run's curves and images to TensorBoard, and images to every logger that accepts them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from lightning_ddpm.callbacks.event_file import EventFile
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.utils.files import write_atomically
from lightning_ddpm.utils.torch_internals import create_summary_writer
from lightning_ddpm.utils.viewing import write_for_viewing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class LoggedMetrics:
    """Remembers at which step each metric was logged last, so that what a resumed run measures again is omitted.

    Args:
        tags: the metrics that have a point at ``step``.
        step: the step after which the run resumes.
    """

    def __init__(self, tags: set[str], step: int) -> None:
        self._last = dict.fromkeys(tags, step)

    def select_new(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Return the metrics that have no point at this step yet; from now on they have."""
        new = {name: value for name, value in metrics.items() if self._last.get(name) != step}
        self._last.update(dict.fromkeys(new, step))
        return new


class RunLogger(TensorBoardLogger):
    """Logs curves over the number of optimizer steps done, in the run's folder itself; a resumed run continues them.

    Points that a killed process logged after its last checkpoint are hidden, because those steps are done again.
    Points at the checkpoint's step stay, and a metric that is measured again there is not logged twice. A full disk
    delays the points and does not end the run.

    Args:
        folder: the run's folder.
        step: the step after which the run resumes; 0 for a new one.
        at_step: log everything at this step and hide nothing, as after training; ``null`` to follow training.
        prefix: text that begins the name of each metric, followed by a dash.
    """

    def __init__(self, folder: Path, step: int = 0, at_step: int | None = None, prefix: str = "") -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False, prefix=prefix)
        self._folder, self._step, self._at_step = Path(folder), step, at_step
        self._begin = f"{prefix}-" if prefix else ""
        self._events = EventFile(self._folder, step + 1 if at_step is None else None)
        self._writer: SummaryWriter | None = None
        self._logged: LoggedMetrics | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """TensorBoard's writer. Nothing is on the disk before the first metric or image of the run is logged."""
        if self._writer is None:
            self._writer = create_summary_writer(str(self._folder), self._events)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log each metric once per step, from step 1 on, where Lightning counts from 0; its ``epoch`` is omitted."""
        if self._logged is None:
            tags = _find_logged_tags(self._folder, self._step)
            self._logged = LoggedMetrics({tag.removeprefix(self._begin) for tag in tags}, self._step)
        done = self.number_step((step or 0) + 1)
        new = self._logged.select_new({name: value for name, value in metrics.items() if name != "epoch"}, done)
        self._events.start_writing()
        super().log_metrics(new, done)

    @rank_zero_only
    def log_image(self, key: str, images: list[Tensor], step: int) -> None:
        """Log images, (c, H, W) uint8, after this number of optimizer steps."""
        self._events.start_writing()
        for image in images:
            self.experiment.add_image(key, image, self.number_step(step))

    def number_step(self, step: int) -> int:
        """Return the step at which the curves have what was measured after this number of steps."""
        return step if self._at_step is None else self._at_step

    @rank_zero_only
    def save(self) -> None:
        """Write what the disk has refused so far."""
        self._events.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; a run that failed before its first metric has none."""
        if status == "success":
            self._events.start_writing()
        self._events.close()


def _find_logged_tags(folder: Path, step: int) -> set[str]:
    """Return the curves with a point at this step."""
    if not step:
        return set()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    events: Any = EventAccumulator(str(folder), {"scalars": 0, "images": 1})
    events.Reload()
    return {tag for tag in events.Tags()["scalars"] if any(each.step == step for each in events.Scalars(tag))}


def get_writers(trainer: Trainer) -> "list[SummaryWriter]":
    """Return TensorBoard's own writers, for texts; none on ranks other than the first."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_image(trainer: Trainer, image: Tensor, file: str, tag: str) -> None:
    """Save an image as a PNG file in the run's folder, and log it to every logger for images; for the first rank.

    Args:
        trainer: the run.
        image: (c, H, W) uint8.
        file: path within the run's folder.
        tag: the loggers' name for it.
    """
    path = Path(trainer.default_root_dir) / file
    write_for_viewing(f"images in {path.parent}", lambda: write_atomically(path, partial(save_image, image)))
    for logger in trainer.loggers:
        name = f"images of {type(logger).__name__}"
        write_for_viewing(name, partial(_send_image, logger, image, tag, trainer.global_step), Exception)


def _send_image(logger: Logger, image: Tensor, tag: str, step: int) -> None:
    if isinstance(logger, RunLogger):
        logger.log_image(tag, [image], step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, image, step)
    elif hasattr(logger, "log_image"):  # WandbLogger; Lightning counts steps from 0
        logger.log_image(tag, [to_pil_image(image)], max(step - 1, 0))
