"""Check what a source declares and opens, and that a model fits it."""

from collections.abc import Sequence

from lightning_ddpm.data.datasets import FileDataset, ImageDataset, check_pixels
from lightning_ddpm.data.sources import ImageSource
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.utils.condition import ConditionFormat
from lightning_ddpm.utils.contracts import check_image_attributes, describe_class
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import get_sides


def check_source(source: object) -> None:
    """Check that a source has the shape of its images, ``channels`` and ``size``.

    Raises:
        UserError: one of them is missing.
    """
    check_image_attributes(source, describe_class(type(source)), "set it in the class or in its __init__")


def check_dataset(
    data: object, owner: object, shape: tuple[int, int, int], classes: int | None, values: ValueRange = UINT8
) -> None:
    """Check what a source opened: its first and last image, and all of its labels.

    Args:
        data: what ``open`` returned.
        owner: the source.
        shape: (channels, height, width) that the source declares.
        classes: number of its class names; ``None`` if labels need no check.
        values: type and range of the values that it declares.

    Raises:
        UserError: it is no dataset of this package, or has floats, images of another shape or other labels.
    """
    name = describe_class(type(owner))
    if not isinstance(data, ImageDataset):
        raise UserError(
            f"{name}.open must return an ImageDataset, got {type(data).__name__}; return "
            "MemoryDataset(images, labels), with uint8 images (n, channels, height, width)"
        )
    if not len(data):  # nothing is held out; without training images no batch can be made, which is reported
        return
    if isinstance(data, FileDataset):  # it decodes into this shape, and an image takes time
        opened: tuple[int, ...] = (data.channels, *get_sides(data.size))
    else:
        batch = data.__getitems__([0, len(data) - 1])
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise UserError(f"{describe_class(type(data))}.__getitems__ must return a tuple (images, labels)")
        check_pixels(batch[0], f"the images of {name}", values)
        opened = tuple(batch[0].shape[1:])
    if opened != shape:
        found, declared = ("x".join(map(str, each)) for each in (opened, shape))
        raise UserError(f"{name} declares images of {declared} (channels x height x width) and has {found}; correct it")
    least, greatest = int(data.labels.min()), int(data.labels.max())
    if classes is not None and not -1 <= least <= greatest < classes:
        wrong = least if least < -1 else greatest
        raise UserError(
            f"{name} has the label {wrong} and {classes} class names: labels lie in 0..{classes - 1}, and -1 is none"
            if classes
            else f"{name} has the label {wrong} and no class names; return them in class_names, or give -1 as labels"
        )


def check_model(
    data_shape: tuple[int, ...], image_shape: tuple[int, ...], data_names: Sequence[str], class_names: Sequence[str]
) -> None:
    """Check that a model fits the data.

    Args:
        data_shape, image_shape: (channels, height, width) of the data and of the model's images.
        data_names, class_names: names of the labels of the data and of the model; the latter are empty if it has none.

    Raises:
        UserError: the shape of the images or the classes differ.
    """
    if data_shape != image_shape:
        found, expected = ("x".join(map(str, each)) for each in (data_shape, image_shape))
        raise UserError(
            f"the data has images of {found} and the network is made for {expected} (channels x height x width); "
            "make them equal"
        )
    if class_names and list(data_names) != list(class_names):
        raise UserError(
            f"the model has the classes {', '.join(class_names)} and the data has "
            f"{', '.join(data_names) or 'no labels'}; make them equal, or use a model without classes"
        )


def check_condition(source: ImageSource, condition: ConditionFormat, values: ValueRange) -> None:
    """Check that a source has what a model is conditioned on besides classes, and images among it of these values.

    Raises:
        UserError: it has not.
    """
    for kind in sorted(condition.kinds):
        if getattr(source.condition, kind) != getattr(condition, kind):
            found = source.condition.describe()
            raise UserError(
                f"the model is conditioned on {condition.describe()} and the data have {found}; make them equal"
            )
    if condition.image and source.condition_values != values:
        raise UserError(
            f"the model is conditioned on images of {values.dtype} {values.describe()} and the data have "
            f"{source.condition_values.dtype} {source.condition_values.describe()}; make them equal"
        )
