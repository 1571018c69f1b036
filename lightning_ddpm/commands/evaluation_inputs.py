"""The inputs of ``evaluate``: a checkpoint, a folder or an npz file of images, and the reference set."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor

from lightning_ddpm import data as datasets
from lightning_ddpm.commands.options import describe_clipping
from lightning_ddpm.data import ImageDataModule, ImageDataset
from lightning_ddpm.data.comparison_images import check_same_kind, open_samples, open_training_folder
from lightning_ddpm.data.sample_images import open_npz_samples
from lightning_ddpm.data.value_range import DTYPES
from lightning_ddpm.metrics import Statistics
from lightning_ddpm.metrics.references import open_npz
from lightning_ddpm.models.image_generator import ImageGenerator, name_sampler
from lightning_ddpm.models.trusted_imports import restrict_imports
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import read_utf8
from lightning_ddpm.utils.hashing import hash_file
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.yaml_text import build_parser, load_yaml

PUBLISHED = 50_000
"""Number of images of published metrics."""
DATASETS = ("CIFAR10", "CelebA", "Digits", "FashionMNIST", "MNIST")
"""Datasets that --reference can name."""
REFERENCES = f"a folder of images, an npz file, a run's config.yaml, or one of {', '.join(DATASETS)}"
"""What --reference can be."""


class EvaluatedImages(NamedTuple):
    """The images to evaluate: those that a model generates, or existing ones.

    Attributes:
        n: number of images.
        shape: (channels, height, width) of each image.
        like: an image (c, h, w) of their shape and type.
        images: the existing images, or ``None`` for those that a model generates.
        origin: where they come from, for the provenance.
    """

    n: int
    shape: tuple[int, ...]
    like: Tensor
    images: ImageDataset | None
    origin: dict[str, Any]


class Reference(NamedTuple):
    """The set that the images are compared with.

    Attributes:
        images: its images; ``None`` where a file has only their statistics.
        statistics: their statistics, where a file has them.
        data: the data module of a dataset, which has held-out images, too.
        origin: where the reference comes from, for the provenance.
    """

    images: ImageDataset | None
    statistics: Statistics | None
    data: ImageDataModule | None
    origin: dict[str, Any]


def load_evaluated_images(options: Namespace, model: ImageGenerator | None) -> EvaluatedImages:
    """Return the images to evaluate: those of the model, or those of --images where it is ``None``."""
    if model:
        origin = {
            "checkpoint": str(options.ckpt),
            "sha256": hash_file(options.ckpt),
            "weights": "raw" if options.raw else "EMA",
            "sampler": name_sampler(model),
            "seed": options.seed,
        } | describe_clipping(model)
        like = torch.zeros(model.image_shape, dtype=DTYPES[model.values.dtype])
        evaluated = EvaluatedImages(options.n or PUBLISHED, model.image_shape, like, None, origin)
    else:
        images = _open_images(options.images)
        if options.n and options.n > len(images):
            raise UserError(f"{options.images} has {len(images)} images and --n is {options.n}; lower --n")
        origin = {"from": str(options.images), "fingerprint": images.fingerprint, "of": len(images)}
        if options.n and options.n < len(images):
            origin["chosen"] = "spread evenly"
            report(f"evaluating {options.n} of the {len(images)} images in {options.images}, spread evenly")
        like = images[0][0]
        evaluated = EvaluatedImages(options.n or len(images), like.shape, like, images, origin)
    if evaluated.n < 2:
        raise UserError(f"evaluate needs at least 2 images, got {evaluated.n}; published metrics use {PUBLISHED}")
    return evaluated


def _open_images(path: Path) -> ImageDataset:
    """Open the images of a folder or an npz file."""
    if path.suffix != ".npz":
        return open_samples(path)
    samples = open_npz_samples(path)
    if samples is None:
        raise UserError(f"{path} has no images: it has no arr_0; a file of statistics can only be the --reference")
    return samples


def load_reference(options: Namespace, like: Tensor) -> Reference:
    """Open the reference; UserError if its images do not have the shape (c, h, w) and type of an evaluated one."""
    name = options.reference
    if name is None:
        beside = options.ckpt.parent / "config.yaml" if options.ckpt else None
        if beside is None or not beside.is_file():
            raise UserError(f"there is nothing to compare with: give --reference, {REFERENCES}")
        name = str(beside)
    path, data, statistics = resolve_path(name), None, None
    if path.suffix == ".npz":
        images, statistics = open_npz(name)
        n = statistics.n if statistics else len(images or ())
        origin: dict[str, Any] = {"from": name, "sha256": hash_file(path), "n": n}
    else:
        data = None if path.is_dir() else _load_data(name, options.root)
        images = data.train if data else _open_folder(path, options, like)
        origin = {"from": name, "fingerprint": images.fingerprint, "n": len(images)}
    if images is not None:
        check_same_kind(images[0][0], like, f"the reference {name}")
    return Reference(images, statistics, data, origin)


def _open_folder(path: Path, options: Namespace, like: Tensor) -> ImageDataset:
    """Open a folder of finished images, or with --size or --on_error one that is read as training would read it."""
    if options.size is None and options.on_error is None:
        return open_samples(path)
    dtype = next(name for name, each in DTYPES.items() if each == like.dtype)
    try:
        size = options.size or (like.shape[1], like.shape[2])
        on_error: Literal["refuse", "skip"] = options.on_error or "refuse"
        return open_training_folder(path, len(like), size, dtype, on_error, options.max_skipped)
    except UserError as error:  # in the words of a config's options
        raise UserError(re.sub(r"(--)?\bdata\.source\.", "--", str(error))) from error


def _load_data(name: str, root: str | None) -> ImageDataModule:
    """Build and prepare the data of a run's config, or a dataset by its name."""
    path = resolve_path(name)
    if path.suffix in (".yaml", ".yml"):
        parser = build_parser()
        parser.add_class_arguments(ImageDataModule, "data")
        try:
            config = load_yaml(read_utf8(path), str(path))["data"]
            config |= {"root": root} if root else {}  # some sources look into it at once
            with restrict_imports(name, config):
                data: ImageDataModule = parser.instantiate(parser.parse_object({"data": config})).data
        except UserError:
            raise
        except Exception as error:  # jsonargparse raises many kinds; all mean that this is not a run's config
            raise UserError(f"{name} has no valid `data`, as a run's config.yaml has: {first_line(error)}") from error
    elif name in DATASETS:
        data = ImageDataModule(getattr(datasets, name)())
    else:
        raise UserError(f"there is no reference {name}: give {REFERENCES}")
    if root:
        data.root = resolve_path(root)
    try:
        data.prepare_data()
    except UserError as error:  # in the words of a config's options
        raise UserError(re.sub(r"(--)?\bdata\.root\b", "--root", str(error))) from error
    return data
