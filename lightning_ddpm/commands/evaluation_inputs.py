"""What ``evaluate`` judges and what with: images to be drawn, folders of them, npz files, data sets."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_ddpm import data as data_sets
from lightning_ddpm.data import ImageDataModule, ImageDataset
from lightning_ddpm.data.sample_images import open_npz_samples, open_sample_folder
from lightning_ddpm.metrics import Statistics, read_statistics
from lightning_ddpm.models.checkpoint import restrict_imports
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.hashing import hash_file

PUBLISHED = 50_000
"""Images of a figure to publish."""
DATASETS = ("CIFAR10", "CelebA", "Digits", "FashionMNIST", "MNIST")
"""Data sets that a name alone describes."""


class EvaluatedImages(NamedTuple):
    """What is judged.

    Attributes:
        n: number of images.
        channels, size: of each.
        model: draws them, or
        images: they are there.
        origin: where they come from, for the provenance.
    """

    n: int
    channels: int
    size: int
    model: DDPM | None
    images: ImageDataset | None
    origin: dict[str, Any]


class Reference(NamedTuple):
    """What they are compared with.

    Attributes:
        images: the images, where they are known.
        statistics: of them, where a file has them.
        data: the data set's module, which knows held-out images.
        origin: where they come from, for the provenance.
    """

    images: ImageDataset | None
    statistics: Statistics | None
    data: ImageDataModule | None
    origin: dict[str, Any]


def load_evaluated_images(options: Namespace, model: DDPM | None) -> EvaluatedImages:
    """What ``evaluate`` is to judge: the model's images, or those of --images."""
    if model:
        channels, size, _ = model.image_shape
        origin = {
            "checkpoint": str(options.ckpt),
            "sha256": hash_file(options.ckpt),
            "weights": "raw" if options.raw else "EMA",
            "sampler": str(model.sampler),
            "seed": options.seed,
            "batch_size": options.batch_size,
        }
        judged = EvaluatedImages(options.n or PUBLISHED, channels, size, model, None, origin)
    else:
        images = _images(options.images)
        channels, size, _ = images[0][0].shape
        if options.n and options.n > len(images):
            raise UserError(f"{options.images} has {len(images)} images and --n asks for {options.n}; lower it")
        origin = {"from": str(options.images), "fingerprint": images.fingerprint, "of": len(images)}
        judged = EvaluatedImages(options.n or len(images), channels, size, None, images, origin)
    if judged.n < 2:
        raise UserError(f"there is no covariance of {judged.n} image; it takes 2 at least, and {PUBLISHED} to publish")
    return judged


def _images(path: Path) -> ImageDataset:
    """The images of a folder or an npz file."""
    if path.suffix != ".npz":
        return open_sample_folder(path)
    samples = open_npz_samples(path)
    if samples is None:
        raise UserError(f"{path} has no images: there is no arr_0 in it; statistics alone can only be a --reference")
    return samples


def load_reference(options: Namespace, judged: EvaluatedImages) -> Reference:
    """What they are compared with; refused where it has another shape."""
    name = options.reference
    if name is None:
        beside = options.ckpt.parent / "config.yaml" if options.ckpt else None
        if beside is None or not beside.is_file():
            raise UserError(
                "there is nothing to compare with: give --reference, a folder of images, an npz file, a run's "
                f"config.yaml, or one of {', '.join(DATASETS)}"
            )
        name = str(beside)
    path, data, statistics, images = Path(name), None, None, None
    if path.suffix == ".npz":
        images = open_npz_samples(path)
        try:
            statistics = read_statistics(path)
        except UserError:
            if images is None:
                raise
        origin: dict[str, Any] = {
            "from": name,
            "sha256": hash_file(path),
            "n": statistics.n if statistics else len(images or ()),
        }
    else:
        if path.is_dir():
            images = open_sample_folder(path)
        else:
            data = _data(name, options.root)
            images = data.reference_images()
        origin = {"from": name, "fingerprint": images.fingerprint, "n": len(images)}
    if images is not None:
        channels, size, _ = images[0][0].shape
        if (channels, size) != (judged.channels, judged.size):
            raise UserError(
                f"the reference {name} has images of {channels}x{size}x{size} and the judged ones are "
                f"{judged.channels}x{judged.size}x{judged.size} (channels x height x width); compare like with like"
            )
    return Reference(images, statistics, data, origin)


def _data(name: str, root: str | None) -> ImageDataModule:
    """The data of a run's config, or a data set by its name; prepared."""
    if Path(name).suffix in (".yaml", ".yml"):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(ImageDataModule, "data")
        try:
            config = yaml.safe_load(Path(name).read_text())["data"]
            with restrict_imports(name):
                data: ImageDataModule = parser.instantiate(parser.parse_object({"data": config})).data
        except FileNotFoundError as error:
            raise UserError(f"there is no file {name}") from error
        except UserError:
            raise
        except Exception as error:  # jsonargparse has many; all mean that it is no run's config
            raise UserError(
                f"{name} does not say of any data, as a run's config.yaml does: {first_line(error)}"
            ) from error
    elif name in DATASETS:
        data = ImageDataModule(getattr(data_sets, name)())
    else:
        raise UserError(
            f"there is no {name} to compare with: give a folder of images, an npz file, a run's config.yaml, or one of "
            f"{', '.join(DATASETS)}"
        )
    if root:
        data.root = Path(root)
    data.prepare_data()
    return data
