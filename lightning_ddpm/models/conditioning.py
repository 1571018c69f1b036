"""What a model's images are conditioned on: the kinds that its network takes, and their values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_ddpm.data.augmentation import Augmentation
from lightning_ddpm.data.conditioned import ConditionedDataset
from lightning_ddpm.data.datasets import Batch, ImageDataset
from lightning_ddpm.data.missing import find_valid, split_missing
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.diffusion import Objective
from lightning_ddpm.models.sample_request import ConditionSource, SampleRequest
from lightning_ddpm.networks import AugmentationEmbedding, EarlyAugmentationEmbedding
from lightning_ddpm.networks.condition_embeddings import ConcatenatedMask, resize_to
from lightning_ddpm.networks.conditions import ConditionEmbedding
from lightning_ddpm.utils.condition import NOTHING, Condition, ConditionFormat, as_condition
from lightning_ddpm.utils.contracts import describe_class
from lightning_ddpm.utils.errors import UserError


def list_embeddings(network: nn.Module) -> list[ConditionEmbedding]:
    """Return a network's embeddings of conditions, its attribute ``conditions``; empty without it.

    Raises:
        UserError: they are something else.
    """
    found = list(getattr(network, "conditions", None) or ())
    for each in found:
        if not isinstance(each, ConditionEmbedding):
            raise UserError(
                f"{describe_class(type(network))} has a {type(each).__name__} in its attribute conditions; it holds "
                "AddedConditions and ConcatenatedConditions of lightning_ddpm.networks"
            )
    return found


def get_format(network: nn.Module) -> ConditionFormat:
    """Return what the data must have for the network besides classes."""
    formats = {each.kind: each.format for each in list_embeddings(network)}
    vector, multilabel, image = (formats.get(kind, NOTHING) for kind in ("vector", "multilabel", "image"))
    return ConditionFormat(vector.vector, multilabel.multilabel, image.image)


def check_augmentations(network: nn.Module, augmentations: Sequence[Augmentation], channels: int) -> None:
    """Check that a network is given what augmentation does to its images, and that they can be augmented.

    Raises:
        UserError: it is not, so that augmentation would leak into generated images; or its embedding is of others.
    """
    embedded = [
        each
        for each in list_embeddings(network)
        if isinstance(each, AugmentationEmbedding | EarlyAugmentationEmbedding)
    ]
    found, needed = sum(each.parameters_of_images for each in embedded), sum(each.parameters for each in augmentations)
    if found != needed:
        names = ", ".join(type(each).__name__ for each in augmentations) or "no augmentation"
        given = f"an {type(embedded[0]).__name__} of {found}" if embedded else "no AugmentationEmbedding"
        fix = "give model.augmentations, or take it out of the network's conditions"
        if needed:
            fix = f"give its conditions one with parameters={needed}, or augmented images would be generated, too"
        raise UserError(f"model.augmentations ({names}) have {needed} parameters and the network has {given}; {fix}")
    if augmentations and get_format(network).image:
        raise UserError(
            "augmentation transforms the images, not those that they are conditioned on; leave one of the two"
        )
    for each in augmentations:
        each.check_images(channels)


def find_mask(network: nn.Module) -> ConcatenatedMask | None:
    """Return the embedding that gives a network the mask of the values that images have; ``None`` without one."""
    return next((each for each in list_embeddings(network) if isinstance(each, ConcatenatedMask)), None)


def get_mask(network: nn.Module) -> Tensor | None:
    """Return which values generated images have, (1, c, h, w) bool; ``None`` where they have all."""
    found = find_mask(network)
    return None if found is None else found.valid[None]


def mark_missing(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return generated images (b, c, h, w) with NaN for the values that no training image has."""
    mask = get_mask(network)
    return pixels if mask is None else torch.where(mask, pixels, torch.nan)


def check_mask(
    network: nn.Module, values: ValueRange, objective: Objective, augmentations: Sequence[Augmentation]
) -> None:
    """Check that a network is given which values of its images are missing, and that they are no part of the loss.

    Raises:
        UserError: it is not, or is given a mask of images in which no value is missing; or the objective counts every
            value; or augmentation would move the values and not the mask.
    """
    mask = find_mask(network)
    if not values.masked:
        if mask:
            raise UserError(
                "ConcatenatedMask is for data in which values are missing; set data.source.nan to mask, or take it out "
                "of model.network.conditions"
            )
        return
    if not mask:
        raise UserError(
            "the data have NaN for missing values (data.source.nan: mask), and the network is not given where; list "
            "lightning_ddpm.networks.ConcatenatedMask in model.network.conditions"
        )
    if not objective.takes_mask:
        raise UserError(
            f"{objective} counts every value, and the data have missing ones (data.source.nan: mask); use Simple or "
            "SimpleWeighted as the objective, or set takes_mask in one of your own, whose loss leaves out what "
            "denoise.mask does"
        )
    if augmentations:
        raise UserError(
            "model.augmentations transform complete images, and these have missing values (data.source.nan: mask); "
            "leave one of the two"
        )


def read_batch(batch: Batch, condition_format: ConditionFormat, masked: bool) -> tuple[Tensor, Condition]:
    """Return the images (b, c, h, w) of a batch and their condition, with the mask of the values that are there.

    Args:
        batch: images and their condition.
        condition_format: what the network is conditioned on.
        masked: whether NaN stands for values that are missing.

    Raises:
        UserError: the condition lacks a kind.
    """
    x_0, condition = batch[0], as_condition(batch[1])
    if condition_format.kinds:
        check_given(condition, condition_format, "a batch of the data has")
    if masked:
        x_0, mask = split_missing(x_0)
        condition = condition._replace(mask=mask)
    return x_0, condition


def measure_conditions(network: nn.Module, data: ImageDataset) -> None:
    """Adapt the network's embeddings to the conditions of the training images."""
    for each in list_embeddings(network):
        if isinstance(each, ConcatenatedMask):
            values: Tensor | None = find_valid(data)
        else:
            values = getattr(data, each.kind, None) if isinstance(data, ConditionedDataset) else None
        if values is not None:
            each.measure(values)


def make_example(format: ConditionFormat, has_classes: bool, n: int) -> Condition:
    """Return a condition of n images of zeros, and the first class, on the CPU."""
    return Condition(
        torch.zeros(n, dtype=torch.long) if has_classes else None,
        torch.zeros(n, len(format.multilabel), dtype=torch.uint8) if format.multilabel else None,
        torch.zeros(n, len(format.vector)) if format.vector else None,
        torch.zeros(n, *format.image) if format.image else None,
    )


def check_given(condition: Condition, format: ConditionFormat, what: str) -> None:
    """Check that a condition has the kinds that a network takes.

    Args:
        condition: it.
        format: of the network.
        what: where it comes from, for the message.

    Raises:
        UserError: a kind is missing, or a row has another length.
    """
    if missing := format.kinds - condition.kinds:
        raise UserError(f"the model is conditioned on {format.describe()} and {what} no {min(missing)}; add it")
    for kind, names in (("vector", format.vector), ("multilabel", format.multilabel)):
        rows: Tensor | None = getattr(condition, kind)
        if names and rows is not None and rows.shape[1:] != (len(names),):
            raise UserError(f"the {kind} is ({', '.join(names)}) and {what} the shape {tuple(rows.shape)}; correct it")
    if format.image and condition.image is not None and tuple(condition.image.shape[1:]) != format.image:
        found, expected = ("x".join(map(str, each)) for each in (condition.image.shape[1:], format.image))
        raise UserError(f"the model is conditioned on images of {expected} and {what} images of {found}; resize them")


def show_given(image: Tensor, condition_values: ValueRange, shape: tuple[int, int, int], values: ValueRange) -> Tensor:
    """Return the images that images are generated from in the shape and the values of these, to be seen beside them.

    Args:
        image: (b, c, h, w), as a dataset has it.
        condition_values: its values.
        shape, values: of the generated images; an image of another size is resized by bicubic interpolation.
    """
    x = resize_to(condition_values.to_float(image), shape[1:])
    if x.shape[1] != shape[0]:
        x = x.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
    return values.to_data(x)


def read_given(
    format: ConditionFormat, request: SampleRequest, held_out: ConditionSource | None, start: int, stop: int
) -> Condition | None:
    """Return the condition of images ``start``..``stop``, as a dataset has it.

    Args:
        format: what the network takes besides classes.
        request: the request.
        held_out: the conditions of held-out images, if there is a dataset.
        start, stop: the images.

    Returns:
        ``None`` for images without a condition.

    Raises:
        UserError: the request has no condition, or another one than the network takes.
    """
    if (source := request.conditions or held_out) is None:
        if request.guidance is not None and not request.guidance.is_conditional:
            return None
        raise UserError(
            f"the model is conditioned on {format.describe()}: give SampleRequest.conditions, or guidance of scale 0 "
            "for images without a condition"
        )
    given = source(start, stop)
    check_given(given, format, "the request has")
    return given
