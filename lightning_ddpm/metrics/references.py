"""The set that a run's generated images are compared with."""

from typing import NamedTuple

from lightning_ddpm.data import ImageDataModule, ImageDataset
from lightning_ddpm.data.comparison_images import check_same_kind, open_training_folder
from lightning_ddpm.data.sample_images import open_npz_samples
from lightning_ddpm.metrics.frechet import Statistics, read_statistics
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.paths import resolve_path

TRAINING, HELD_OUT = "training", "held_out"
"""The run's own sets, by the names that a config gives them; any other name is a path."""


class ReferenceSet(NamedTuple):
    """Images to compare with, or their statistics.

    Attributes:
        images: the images; ``None`` where a file has only their statistics.
        statistics: their statistics, where a file has them.
        name: what they are, for messages.
    """

    images: ImageDataset | None
    statistics: Statistics | None
    name: str

    @property
    def n(self) -> int | None:
        """Number of images; ``None`` where a file does not say."""
        return len(self.images) if self.images is not None else (self.statistics and self.statistics.n) or None


def open_reference(reference: str, data: ImageDataModule) -> ReferenceSet:
    """Open what generated images are compared with.

    Args:
        reference: ``training`` or ``held_out``, for the images of the data; else a path, where folders are read as
            training reads them, at the data's size and channels.
        data: the run's data.

    Raises:
        UserError: there are no such images, or they are of another kind than the data's.
    """
    if reference == TRAINING:
        return ReferenceSet(data.train, None, "the training set")
    if reference == HELD_OUT:
        return ReferenceSet(data.held_out, None, "the held-out set")
    path = resolve_path(reference)
    if path.suffix == ".npz":
        images, statistics = open_npz(reference)
    elif path.is_dir():
        images, statistics = open_training_folder(path, data.channels, data.size, data.values.dtype), None
    else:
        raise UserError(f"there is no reference {reference}: give {TRAINING}, {HELD_OUT}, a folder or an npz file")
    if images is not None:
        check_same_kind(images[0][0], data.train[0][0], f"the reference {reference}")
    return ReferenceSet(images, statistics, str(reference))


def open_npz(name: str) -> tuple[ImageDataset | None, Statistics | None]:
    """Return the images and the statistics in an npz file, one of which may be ``None``; UserError if both are."""
    path = resolve_path(name)
    images = open_npz_samples(path)
    try:
        return images, read_statistics(path)
    except UserError:
        if images is None:
            raise
        return images, None
