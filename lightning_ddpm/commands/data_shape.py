"""Give a network the shape, the classes and the other conditions of the data."""

import inspect
from dataclasses import asdict
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace

from lightning_ddpm.commands.parsing import instantiate
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.utils.condition import ConditionFormat
from lightning_ddpm.utils.contracts import describe_class
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import format_size, write_size
from lightning_ddpm.utils.yaml_text import build_parser


def fill_shape(model: Namespace, data: Namespace) -> list[str] | None:
    """Set the network's channels, size, number of classes and conditions to those of the data.

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
    _fill_values(model, "values", module.values)
    _fill_values(model, "condition_values", module.source.condition_values)
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
    for index, each in enumerate(arguments.get("conditions") or ()):
        _fill_condition(each, module.source.condition, f"model.network.conditions[{index}]")
    return class_names


def _fill_values(model: Namespace, option: str, values: ValueRange) -> None:
    """Set the model's range of values to the data's, unless the data have the default one."""
    if option not in model or values == UINT8:
        return
    given, found = asdict(values), model[option]
    if found is not None and asdict(ValueRange(**found.as_dict())) != given:
        raise UserError(
            f"the data's values are {values.dtype} {values.describe()}, and model.{option} are others; set them to "
            "null to take the data's"
        )
    model[option] = Namespace(given)  # type: ignore[no-untyped-call]


def _fill_condition(embedding: Namespace, given: ConditionFormat, option: str) -> None:
    """Set the arguments of an embedding of conditions that are ``null`` to those of the data."""
    kind, arguments = resolve_name(embedding.class_path), embedding.get("init_args")
    for name, value in kind.get_data_arguments(given).items() if arguments is not None else ():
        if (found := arguments.get(name)) is None:
            arguments[name] = value
        elif found != value and (name != "size" or _write(found) != _write(value)):
            raise UserError(
                f"the data has {name}={value} and {option} has {name}={found}; set it to null to take the value of "
                "the data, or change the data"
            )


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
