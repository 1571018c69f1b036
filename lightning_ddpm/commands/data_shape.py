"""Give a network the shape and the classes of the data."""

import inspect
from dataclasses import asdict
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace

from lightning_ddpm.commands.parsing import instantiate
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.utils.contracts import describe_class
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import format_size, write_size
from lightning_ddpm.utils.yaml_text import build_parser


def fill_shape(model: Namespace, data: Namespace) -> list[str] | None:
    """Set the network's channels, size and number of classes to those of the data.

    Returns:
        the names of the classes, if the model takes them from the data.

    Raises:
        UserError: the network is configured for other data, or for square images alone.
    """
    arguments = model.network.init_args
    parser = build_parser()
    parser.add_class_arguments(ImageDataModule, "data", fail_untyped=False)
    module = instantiate(parser, Namespace(data=data.clone())).data  # type: ignore[no-untyped-call]
    shape, class_names = {"channels": module.channels, "size": module.size}, None
    if arguments.get("classes", 0) != 0:  # conditioned on the class: null takes the number of classes from the data
        names = module.class_names()
        shape["classes"] = len(names)
        if names and "class_names" in model and model.class_names is None:
            class_names = names
    if "values" in model and module.values != UINT8:
        given, found = asdict(module.values), model["values"]
        if found is not None and dict(found.as_dict()) != given:
            raise UserError(
                f"the data's values are {module.values.dtype} {module.values.describe()}, and model.values are others; "
                "set them to null to take the data's"
            )
        model["values"] = Namespace(given)  # type: ignore[no-untyped-call]
    for name, given in shape.items():
        if arguments.get(name, given) is None:
            if name == "size":
                _check_takes_size(resolve_name(model.network.class_path), given)
            arguments[name] = given or None  # without labels the network raises the error that it needs them
        elif name in arguments and _write(arguments[name]) != _write(given):
            raise UserError(
                f"the data has {name}={_write(given)} and the network has {name}={_write(arguments[name])}; set "
                f"model.network.{name} to null to take the value of the data, or change the data"
            )
    return class_names


def _write(value: Any) -> str:
    """Return a number or a size as a config has it."""
    return write_size(value) if isinstance(value, list | tuple) else str(value)


def _check_takes_size(network: Any, size: Any) -> None:
    """Check that a network takes images that are not square; UserError if its argument ``size`` is a single int."""
    parameter = inspect.signature(network).parameters.get("size")
    if isinstance(size, int) or parameter is None or parameter.annotation not in (int, int | None, "int", "int | None"):
        return
    raise UserError(
        f"{describe_class(network)} takes square images alone, because its argument size is an int, and the data has "
        f"images of {format_size(size)}; declare it as lightning_ddpm.utils.image_size.ImageSize, an int or "
        "(height, width), or change data.source.size"
    )
