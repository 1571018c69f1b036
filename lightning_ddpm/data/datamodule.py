"""One DataModule over any image source."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_ddpm.data.datasets import Batch, FileDataset, ImageDataset
from lightning_ddpm.data.decode_cache import decode_to_file, decode_to_memory, fits_in_memory
from lightning_ddpm.data.image_io import to_float
from lightning_ddpm.data.sharding import ImageRange, Shard, ShuffledShard, split_ranges
from lightning_ddpm.data.sources import SPLITS, ImageSource
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import get_run_seed, make_generator


class ImageDataModule(LightningDataModule):
    """Batches of images (b, c, h, w) in [-1, 1] and labels (b,) int64, -1 where there is none.

    Images travel to the device as uint8 and become floats there, in :meth:`on_after_batch_transfer` alone.

    Args:
        source: the data set.
        root: the folder it lies in, or is downloaded to.
        batch_size: images a step on each device.
        flip: mirror half of the training images left to right, as Ho et al. do but for LSUN-cat and digits.
        workers: processes that read ahead; 0 for sets kept in memory.
        generate: images that ``predict`` generates.
        decoded: folder for the decoded pictures of sets too large for memory (over 1 GiB), which all processes of a
            machine then share; ``null`` to decode them at every turn.
    """

    def __init__(
        self,
        source: ImageSource,
        root: str = "data",
        batch_size: int = 128,
        flip: bool = False,
        num_workers: int = 0,
        predict_images: int = 64,
        decode_cache: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self.source, self.root, self.batch_size = source, Path(root), batch_size
        self.flip, self.num_workers, self.predict_images = flip, num_workers, predict_images
        self.decode_cache = None if decode_cache is None else Path(decode_cache)
        self.channels, self.size = source.channels, source.size

    def class_names(self) -> list[str]:
        """What the labels mean; empty where there are none."""
        return self.source.class_names(self.root)

    def check_model(self, image_shape: tuple[int, int, int], class_names: Sequence[str]) -> None:
        """Refuse a model that is made for other images, before anything is computed.

        Args:
            image_shape: (channels, height, width) of the model's.
            class_names: what its labels mean; empty where it has none.
        """
        channels, size, _ = image_shape
        if (self.channels, self.size) != (channels, size):
            raise UserError(
                f"the data has images of {self.channels}x{self.size}x{self.size} and the network is made for "
                f"{channels}x{size}x{size} (channels x height x width); make them agree"
            )
        if class_names and self.class_names() != list(class_names):
            raise UserError(
                f"the model has the classes {', '.join(class_names)} and the data has "
                f"{', '.join(self.class_names()) or 'no labels'}; make them agree, or take a model without classes"
            )

    def prepare_data(self) -> None:
        """Fetch, check and, where asked, decode the data, in one process of a machine before the others open it."""
        self.source.prepare(self.root)
        for split in SPLITS if self.decode_cache else ():
            data = self.source.open(self.root, split)
            if isinstance(data, FileDataset) and not fits_in_memory(data):
                self._cache_decoded(data)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._begins = (0, 0)
        if stage == "fit" and not hasattr(self, "train"):
            self.train: ImageDataset = self._cache_decoded(self.source.open(self.root, "train"))
        if stage in ("fit", "validate", "test") and not hasattr(self, "held_out"):
            self.held_out: ImageDataset = self._cache_decoded(self.source.open(self.root, "test"))
        if stage == "fit" and self.batch_size * self._world > len(self.train):
            raise UserError(
                f"a batch of {self.batch_size} images on each of {self._world} devices is more than the data set has "
                f"({len(self.train)}); lower data.batch_size"
            )

    def reference_images(self) -> ImageDataset:
        """The training images as they are, un-flipped: what generated images are compared with."""
        if not hasattr(self, "train"):
            self.train = self._cache_decoded(self.source.open(self.root, "train"))
        return self.train

    def train_dataloader(self) -> DataLoader[Batch]:
        order = ShuffledShard(len(self.train), get_run_seed(), self._rank, self._world, *self._begins)
        return self._loader(self.train, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.held_out, Shard(len(self.held_out), self.batch_size, self._rank, self._world))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[ImageRange]:
        """The images to generate, not to read."""
        mine = split_ranges(self.predict_images, get_run_seed(), self.batch_size, self._rank, self._world)
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Where in the order of the training images the run is: the epoch, and its images that all ranks have had."""
        loader = self.trainer.train_dataloader if self.trainer is not None else None
        if self.trainer is None or loader is None or self.trainer.state.fn != "fit":
            return {}
        epoch, batches = loader.sampler.epoch, self.trainer.fit_loop.batch_idx + 1
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        seen = batches * self.batch_size * self._world
        return {"epoch": epoch, "seen": seen, "images": len(self.train), "batch": [self.batch_size, self._world]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, not from the epoch's first images.

        Raises:
            UserError: the training set has another size, so that its order is another.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        if state_dict["images"] != len(self.train):
            raise UserError(
                f"the checkpoint's run was trained on {state_dict['images']} images, and there are {len(self.train)} "
                "now, whose order is another; give it its images back, or start another run"
            )
        self._begins = state_dict["epoch"], state_dict["seen"]
        # Lightning looks for the position in the loader, which some callbacks make before it is known.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")

    def count_batches_done(self) -> int:
        """Batches of the epoch that training goes on in which come before, each of the size that it has now."""
        whole, left = (n // self._world for n in (len(self.train), len(self.train) - self._begins[1]))
        return -(-whole // self.batch_size) + -left // self.batch_size

    def list_batch_indices(self, batch: int) -> list[int]:
        """The numbers of the training images in this rank's batch of this index in the current epoch."""
        assert self.trainer is not None
        assert self.trainer.train_dataloader is not None
        sampler: ShuffledShard = self.trainer.train_dataloader.sampler
        start = (batch - (self.count_batches_done() if sampler.epoch == self._begins[0] else 0)) * self.batch_size
        return list(sampler)[start : start + self.batch_size]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is not None and self.trainer.predicting:
            return batch
        images, labels = batch
        x_0 = to_float(images)
        return (self._flip(x_0) if self.flip and self._training else x_0), labels

    def _cache_decoded(self, data: ImageDataset) -> ImageDataset:
        """Pictures decoded in memory or in a file, where there is room for them."""
        if not isinstance(data, FileDataset):
            return data
        if fits_in_memory(data):
            return decode_to_memory(data, str(self.root))
        return decode_to_file(data, self.decode_cache, str(self.root)) if self.decode_cache else data

    def _flip(self, x_0: Tensor) -> Tensor:
        assert self.trainer is not None
        step = self.trainer.fit_loop.total_batch_idx
        randomness = make_generator(x_0.device, "flip", get_run_seed(), self._rank, index=step)
        flipped = torch.rand(len(x_0), device=x_0.device, generator=randomness) < 0.5
        return torch.where(flipped[:, None, None, None], x_0.flip(-1), x_0)

    def _loader(self, data: ImageDataset, sampler: Shard | ShuffledShard) -> DataLoader[Batch]:
        return DataLoader(
            data,  # type: ignore[arg-type]  # __getitems__ hands out batches
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_return_batch,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    @property
    def _training(self) -> bool:
        return self.trainer is not None and self.trainer.training

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def _return_batch(batch: Any) -> Any:
    return batch
