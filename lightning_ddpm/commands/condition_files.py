"""``--condition`` and ``--condition_images``: what generated images are conditioned on, from a table and a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.array_files import ArrayDataset, ArrayFolderImages
from lightning_ddpm.data.condition_table import ConditionTable
from lightning_ddpm.data.conditioned import shuffle_conditions
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_paths import list_images
from lightning_ddpm.data.sample_images import open_sample_folder
from lightning_ddpm.data.value_range import UINT8, check_finite
from lightning_ddpm.diffusion import Guidance
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.image_generator import ImageGenerator
from lightning_ddpm.models.sample_request import ConditionSource
from lightning_ddpm.utils.condition import Condition, ConditionFormat
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.hashing import hash_file
from lightning_ddpm.utils.paths import resolve_path

LABELS = {"class": "names", "label": "numbers"}
"""Columns of the class of a model with classes, and what they hold."""


class GivenConditions(NamedTuple):
    """The conditions in the files that the options name.

    Attributes:
        n: number of them; they are repeated in turn.
        read: (start, stop) -> the conditions of images ``start``..``stop``.
        description: for the record of how images were generated.
        labels: the class of each; ``None`` where no file has them.
    """

    n: int
    read: ConditionSource
    description: dict[str, str]
    labels: list[int] | None = None


def add_condition_options(parser: ArgumentParser) -> None:
    """Add the options of this file."""
    add = parser.add_argument
    add(
        "--condition",
        type=resolve_path,
        metavar="FILE.csv",
        help="a row of numbers or classes for each image, by the names of the columns, repeated in turn",
    )
    add(
        "--condition_images",
        type=resolve_path,
        metavar="DIR",
        help="the images that images are generated from, in the order of their paths, repeated in turn",
    )


def read_condition_files(options: Namespace, model: DDPM, guidance: Guidance | None) -> GivenConditions | None:
    """Return the conditions that the options name; ``None`` without these options.

    Args:
        options: of the command.
        model: the model.
        guidance: the requested one.

    Raises:
        UserError: the model is not conditioned on them, or on more, or they cannot be read.
    """
    needed, table, images = model.condition_format, Condition(), None
    if options.condition:
        table = _read_table(options.condition, model)
    if options.condition_images:
        if needed.image is None:
            raise UserError(f"--condition_images: {options.ckpt} was trained without images as a condition; remove it")
        images = _open_images(options.condition_images, model)
    if options.condition is None and options.condition_images is None:
        return None
    is_conditional = guidance is None or guidance.is_conditional
    if is_conditional and (needed.vector or needed.multilabel) and not options.condition:
        raise UserError(f"the model is conditioned on {needed.describe()}; add --condition FILE.csv")
    if is_conditional and needed.image and images is None:
        raise UserError(f"the model is conditioned on {needed.describe()}; add --condition_images DIR")
    lengths = [len(each) for each in (*table, images) if each is not None]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{options.condition} has {lengths[0]} rows and {options.condition_images} {lengths[-1]} images; give one "
            "row for each image"
        )
    n = lengths[0]

    def read(start: int, stop: int) -> Condition:
        chosen = torch.arange(start, stop) % n
        found = table.map(lambda each: each[chosen])
        if images is None or needed.image is None:
            return found
        pixels = images.__getitems__(chosen.tolist())[0]
        return found._replace(image=pixels.expand(-1, needed.image[0], -1, -1))  # gray ones where the model takes RGB

    described = {"condition": hash_file(options.condition)} if options.condition else {}
    described |= {"condition_images": images.fingerprint} if images else {}
    return GivenConditions(n, read, described, None if table.label is None else table.label.tolist())


def _read_table(path: Path, model: DDPM) -> Condition:
    table, needed = ConditionTable(path), model.condition_format
    columns = [name for name in LABELS if name in table.columns and name not in (*needed.vector, *needed.multilabel)]
    label = None
    if columns and model.class_names:
        label = torch.tensor(_parse_labels(table, columns[0], model.class_names))
    elif not (needed.vector or needed.multilabel):
        takes = (
            "it takes the class of each image in a column class or label" if model.class_names else "remove --condition"
        )
        raise UserError(f"{path} has no column that the model is conditioned on; {takes}")
    return Condition(
        label,
        table.read_flags(needed.multilabel) if needed.multilabel else None,
        table.read_numbers(needed.vector) if needed.vector else None,
    )


def _parse_labels(table: ConditionTable, column: str, names: Sequence[str]) -> list[int]:
    """Return the labels in a column of class names, or of their numbers."""
    known = list(names) if column == "class" else [str(label) for label in range(len(names))]
    texts = table.read_column(column)
    if unknown := next((number for number, text in enumerate(texts, 1) if text not in known), None):
        raise UserError(
            f"row {unknown} of {table.path} has {texts[unknown - 1]!r} in the column {column}, which holds "
            f"{LABELS[column]} of classes: {', '.join(known[:10])}{', ...' * (len(known) > 10)}"
        )
    places = {text: label for label, text in enumerate(known)}
    return [places[text] for text in texts]


def _open_images(folder: Path, model: DDPM) -> ImageDataset:
    """Open the images of a folder; UserError if they are not of the condition's shape and values."""
    values, shape = model.condition_values, model.condition_format.image
    assert shape
    if values == UINT8:
        images = open_sample_folder(folder)
    else:
        if not folder.is_dir() or not (paths := list_images(folder, extensions=(".npy", ".npz"))):
            raise UserError(f"{folder} is no folder of .npy files, which the model's {values.dtype} conditions are in")
        arrays = ArrayFolderImages(paths, torch.full((len(paths),), -1))
        for index in range(len(arrays)):
            array = arrays.read(index)
            try:
                check_finite(array)
                values.check(array)
            except UserError as error:
                raise UserError(f"{arrays.name(index)}: {error}") from error
        images = ArrayDataset(arrays, range(len(arrays)))
    channels, *sides = images[0][0].shape
    if tuple(sides) != shape[1:] or channels not in (1, shape[0]):
        found, expected = ("x".join(map(str, each)) for each in ((channels, *sides), shape))
        raise UserError(f"the images in {folder} are {found} and the model is conditioned on {expected}; resize them")
    return images


def take_conditions(data: ImageDataModule | None) -> GivenConditions | None:
    """Return the conditions of held-out images, in a fixed order that is shuffled; ``None`` where there are none."""
    found = shuffle_conditions(data.held_out, data.train) if data else None
    return GivenConditions(len(found), found, {"condition": "of held-out images"}) if found else None


def require_conditions(model: ImageGenerator, given: GivenConditions | None, guidance: Guidance | None) -> None:
    """Raise UserError for a model that is given a condition besides classes, if there is none for it."""
    if not isinstance(model, DDPM) or not model.condition_format.kinds or given:
        return
    if guidance is None or guidance.is_conditional:
        options = " and ".join(list_condition_options(model.condition_format))
        raise UserError(
            f"the model is conditioned on {model.condition_format.describe()}: give {options}, or --guidance 0 for "
            "images without a condition"
        )


def list_condition_options(needed: ConditionFormat) -> list[str]:
    """Return the options that give what a model is conditioned on besides classes; empty where that is nothing."""
    table = ["--condition FILE.csv"] if needed.vector or needed.multilabel else []
    return [*table, "--condition_images DIR"] if needed.image else table
