"""The DataModule of any image source."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from lightning_ddpm.data import checks, sharding
from lightning_ddpm.data.conditioned import check_conditions, convert_image
from lightning_ddpm.data.datasets import Batch, ImageDataset, hash_images
from lightning_ddpm.data.decode_cache import decode_large, decode_once
from lightning_ddpm.data.global_batch import GlobalBatch, check_fits
from lightning_ddpm.data.missing import check_masked
from lightning_ddpm.data.order import ImageOrder, Lanes, read_lanes
from lightning_ddpm.data.resident import IndexDataset, ResidentImages, keep_on_device
from lightning_ddpm.data.sources import SPLITS, ImageSource, Split
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.contracts import is_ours
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import get_sides, shorten_size
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.random import get_run_seed
from lightning_ddpm.utils.signals import protect_worker


class ImageDataModule(LightningDataModule):
    """Batches of images (b, c, h, w) in [-1, 1] and labels (b,) int64, where -1 means no label, or other conditions.

    Images are transferred to the device as they are; only :meth:`on_after_batch_transfer` converts them to floats.

    Args:
        source: the dataset.
        root: the folder that holds the data, or that they are downloaded to.
        batch_size: number of images in a batch on each device.
        flip: mirror half of the training images left to right. Ho et al. do so except for LSUN-cat; do not for digits.
        num_workers: processes that read ahead; 0 is best for datasets kept in memory.
        predict_images: number of images that ``predict`` generates.
        decode_cache: folder for the decoded images of datasets over 1 GiB, which are not kept in memory; all processes
            of a machine share the file. With ``null`` they are decoded at every access.
        global_batch_size: number of images in an optimizer step. A device takes at most ``batch_size`` at once and
            accumulates the rest. With ``null`` it is ``batch_size`` times devices times
            ``trainer.accumulate_grad_batches``, and a run that is resumed on other devices keeps its number.
        drop_last: skip the images at the end of an epoch that do not fill a step, so that all batches have one size.
        on_device: keep the training images in the device's memory; the batches are the same. With ``null`` a GPU does
            so if they are kept in memory and take up to an eighth of its own.
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
        global_batch_size: int | None = None,
        drop_last: bool = False,
        on_device: bool | None = None,
    ) -> None:
        super().__init__()
        least = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0), "predict_images": (predict_images, 1)}
        for option, (number, minimum) in (least | {"global_batch_size": (global_batch_size, 1)}).items():
            if number is not None and number < minimum:
                raise UserError(f"data.{option} must be at least {minimum}, got {number}")
        self.source, self.root, self.batch_size = source, resolve_path(root), batch_size
        source.inspect(self.root)
        checks.check_source(source)
        self.flip, self.num_workers, self.predict_images = flip, num_workers, predict_images
        self.on_device = on_device
        self._resident: ResidentImages | None = None
        self.drop_last, self._global_batch, self._begins = drop_last, GlobalBatch(batch_size, global_batch_size), (0, 0)
        self._kept: tuple[int, Lanes] | None = None
        self.decode_cache = None if decode_cache is None else resolve_path(decode_cache)
        self.channels, self.size, self.values = source.channels, shorten_size(source.size), source.values

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.channels, *get_sides(self.size)

    def class_names(self) -> list[str]:
        """Return the names of the labels 0, 1, ...; empty if the images have no labels."""
        return self.source.class_names(self.root)

    def check_model(self, image_shape: tuple[int, int, int], class_names: Sequence[str]) -> None:
        """Check that a model fits the data; see :func:`~lightning_ddpm.data.checks.check_model`."""
        checks.check_model(self.image_shape, image_shape, self.class_names() if class_names else (), class_names)

    def prepare_data(self) -> None:
        """Download, check and, with ``decode_cache``, decode the data, in one process of each machine."""
        self.source.prepare(self.root)
        for split in SPLITS if self.decode_cache else ():
            assert self.decode_cache
            decode_large(self.source.open(self.root, split), self.decode_cache, str(self.root))

    def setup(self, stage: str) -> None:
        self.batch_size, self._begins, self._kept = self._global_batch.setup(self.trainer), (0, 0), None
        if self.trainer:
            check_masked(self.values, self.trainer.lightning_module)
        if stage == "fit":
            self._is_resumed = False
            step = self.step_size if self.drop_last else None
            check_fits(len(self.train), self.batch_size, self._ranks.world_size, step)
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            self._resident = keep_on_device(self.train, self.on_device, device)

    def teardown(self, stage: str) -> None:
        self._resident = None

    @cached_property
    def train(self) -> ImageDataset:
        """The training images, without flips, which generated images are compared with; opened at the first access."""
        return decode_once(self._open("train"), self.decode_cache, str(self.root))

    @cached_property
    def held_out(self) -> ImageDataset:
        """The images for validation and test; opened at the first access."""
        return decode_once(self._open("test"), self.decode_cache, str(self.root))

    def _open(self, split: Split) -> ImageDataset:
        """Open a part of the source, and check a source of the user's."""
        data = self.source.open(self.root, split)
        classes = None if is_ours(type(self.source)) else len(self.class_names())
        checks.check_dataset(data, self.source, self.image_shape, classes, self.values)
        if len(data):
            check_conditions(data, self.source.condition, type(self.source).__name__)
        return data

    @property
    def step_size(self) -> int:
        """Number of images in an optimizer step, over all devices and accumulated batches."""
        accumulate: int = self.trainer.accumulate_grad_batches if self.trainer else 1
        return self.batch_size * self._ranks.world_size * accumulate

    def describe_step(self) -> str:
        """Return how a step is divided, to be appended to its number of images; empty if it is one batch."""
        devices, batches = self._ranks.world_size, self.step_size // self.batch_size
        return f" ({devices} x {batches // devices} batches of {self.batch_size})" if batches > 1 else ""

    def locate_batch(self, batch: int, rank: int | None = None) -> sharding.StepPart:
        """Return where a rank's training batch stands in its optimizer step; ``None`` for this rank."""
        assert self.trainer is not None
        trainer = self.trainer
        return self._sampler.locate(batch, trainer.accumulate_grad_batches, int(trainer.num_training_batches), rank)

    def locate_held_out(self, batch: int, images: int) -> tuple[int, sharding.StepPart]:
        """Return where a batch of held-out images stands among all, in parts of a step's size: the part, and where."""
        assert self.trainer is not None
        part, batch = divmod(batch, self.trainer.accumulate_grad_batches)
        number = batch * self._ranks.world_size + self._ranks.rank
        start, total = number * self.batch_size, min(self.step_size, len(self.held_out) - part * self.step_size)
        return part, sharding.StepPart(start, start + images, total, number)

    def train_dataloader(self) -> DataLoader[Batch]:
        kept = IndexDataset(len(self.train)) if self._resident else None
        return self._loader(kept or self.train, self._make_sampler(), 0 if kept else self.num_workers)

    def _make_sampler(self) -> sharding.ShuffledShard:
        kind = sharding.RepeatedShard if getattr(self.trainer, "overfit_batches", 0) else sharding.ShuffledShard
        multiple = self.step_size if self.drop_last else 1
        lanes = Lanes(self._ranks.world_size * max(1, self.num_workers), self.batch_size)
        order = ImageOrder(len(self.train), get_run_seed(), self.train.blocks, lanes, self._kept)
        return kind(order.n, order.seed, self._ranks, self.batch_size, *self._begins, multiple, order)

    @property
    def _sampler(self) -> sharding.ShuffledShard:
        """The sampler of the current epoch."""
        assert self.trainer is not None
        assert self.trainer.train_dataloader is not None
        sampler: sharding.ShuffledShard = self.trainer.train_dataloader.sampler
        return sampler

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._held_out_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._held_out_loader("test")

    def _held_out_loader(self, stage: str) -> DataLoader[Batch]:
        """Return a loader of the held-out images, whose first batches stand for all if Lightning takes no others."""
        n, batch = len(self.held_out), self.batch_size * self._ranks.world_size
        limit: int | float = getattr(self.trainer, f"limit_{stage}_batches", 1.0)
        used = sharding.count_used(
            n, batch, limit, "overfit" if getattr(self.trainer, "overfit_batches", 0) else f"limit_{stage}"
        )
        if 0 < used < n and self._ranks.is_first:
            report(f"{stage}: {used} of the {n} held-out images, spread evenly (limit_{stage}_batches {limit:g})")
        return self._loader(self.held_out, sharding.Shard(n, self.batch_size, self._ranks, used), self.num_workers)

    def predict_dataloader(self) -> DataLoader[sharding.ImageRange]:
        """Return a loader of ranges of images to generate; it reads no images."""
        mine = sharding.split_ranges(self.predict_images, get_run_seed(), self.batch_size, self._ranks)
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the order of training images: the epoch, and its images seen, summed over ranks."""
        if self.trainer is None or self.trainer.state.fn != "fit" or self.trainer.train_dataloader is None:
            return {}
        if self._is_resumed:  # before the first batch Lightning's counters still speak of the epoch before
            epoch, seen = self._begins
        else:
            epoch, batches = self._sampler.epoch, self.trainer.fit_loop.batch_idx + 1
            ended = batches >= self.trainer.num_training_batches
            # after fit an epoch that max_steps has ended is over for Lightning, which yet counts on from its batch
            epoch, seen = (
                max(epoch + ended, self.trainer.current_epoch),
                self._sampler.count_seen(batches) * (not ended),
            )
        return {
            "epoch": epoch,
            "seen": seen,
            "images": len(self.train),
            "batch": [self.batch_size, self._ranks.world_size],
            "step": self._global_batch.state_dict(self.step_size),
            **self._make_sampler().order.state_dict(epoch),
            "sha256": self._train_digest,
        }

    @cached_property
    def _train_digest(self) -> str:
        return hash_images(self.train)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at that position instead of at the start of the epoch.

        Raises:
            UserError: the number of training images has changed, and with it their order.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        if state_dict["images"] != len(self.train):
            raise UserError(
                f"the checkpoint's run was trained on {state_dict['images']} images and there are {len(self.train)} "
                "now, so their order has changed; restore the images, or start another run"
            )
        if state_dict.get("sha256", self._train_digest) != self._train_digest and self._ranks.is_first:
            report("changed: the training images or their labels are not those of the checkpoint's run")
        self._begins, self._is_resumed = (state_dict["epoch"], state_dict["seen"]), True
        self._kept = read_lanes(state_dict)
        if (batch_size := self._global_batch.keep(self.trainer, state_dict.get("step", {}))) is not None:
            self.batch_size = batch_size
            if self._ranks.is_first:
                report(f"kept: {self.step_size} images in a step, as in the checkpoint's run{self.describe_step()}")
        # Lightning expects the position in the loader, which some callbacks create before the position is known.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")

    def count_batches_done(self) -> int:
        """Return the number of batches of the resumed epoch that are done, counted in the current batch size."""
        return self._make_sampler().count_batches_done()

    def list_batch_indices(self, batch: int) -> list[int]:
        """Return the indices of the training images in a batch of this rank, by its index in the current epoch."""
        return self._sampler.list_images(batch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is not None and self.trainer.predicting:
            return batch
        if training := self.trainer is not None and self.trainer.training:
            self._is_resumed = False
        pixels, condition = self._resident.gather(batch) if training and self._resident else batch
        x_0 = self.values.to_float(pixels)
        if isinstance(condition, Condition):
            condition = convert_image(condition, self.source.condition_values)
        return self._flip(x_0, condition) if self.flip and training else (x_0, condition)

    def _flip(self, x_0: Tensor, condition: Tensor | Condition) -> tuple[Tensor, Tensor | Condition]:
        """Mirror half of the images, each together with the image that it is conditioned on."""
        assert self.trainer is not None
        part = self.locate_batch(self.trainer.fit_loop.batch_idx + 1)  # Lightning counts the batch after its transfer
        step = self.trainer.global_step - 1  # from -1: earlier versions keyed flips by the batch before
        flipped = part.generate(x_0.device, "flip", step).rand() < 0.5
        chosen = flipped[:, None, None, None]
        if isinstance(condition, Condition) and (image := condition.image) is not None:
            condition = condition._replace(image=torch.where(chosen, image.flip(-1), image))
        return torch.where(chosen, x_0.flip(-1), x_0), condition

    def _loader(self, data: Any, sampler: sharding.Shard | sharding.ShuffledShard, workers: int) -> DataLoader[Batch]:
        return DataLoader(
            data,  # its __getitems__ returns batches
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=default_convert,
            pin_memory=torch.cuda.is_available(),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=protect_worker,
        )

    @property
    def _ranks(self) -> Ranks:
        return Ranks(self.trainer.global_rank, self.trainer.world_size) if self.trainer else Ranks()
