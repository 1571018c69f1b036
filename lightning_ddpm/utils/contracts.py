"""Describe classes that a user wrote in error messages, and check how their methods are called."""

import inspect
from collections.abc import Callable
from typing import Any

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import is_size

PACKAGE = __name__.partition(".")[0]


def is_ours(kind: type) -> bool:
    """Return whether a class is defined in this package."""
    return kind.__module__.partition(".")[0] == PACKAGE


def describe_class(kind: type) -> str:
    """Return a class's name, and the file and line of its definition where it is not of this package."""
    if is_ours(kind):
        return kind.__name__
    try:
        return f"{kind.__name__} ({inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError):  # its source is not in a file
        return kind.__name__


def describe_missing_methods(kind: type) -> str:
    """Return which abstract methods a class does not define, as in ``Mine (mine.py:3) does not define step``."""
    methods = sorted(getattr(kind, "__abstractmethods__", ()))
    return f"{describe_class(kind)} does not define {' and '.join(methods)}"


def check_image_attributes(owner: object, name: str, fix: str) -> None:
    """Check that an object has the attributes ``channels``, an int, and ``size``, an int or (height, width).

    Args:
        owner: the object.
        name: its name in the message.
        fix: what to do, where ``{}`` stands for the attribute.

    Raises:
        UserError: one of them is missing or no such number.
    """
    for attribute, what in (("channels", "channels of its images"), ("size", "size of its images or (height, width)")):
        value = getattr(owner, attribute, None)
        if not is_size(value) or (attribute == "channels" and not isinstance(value, int)):
            raise UserError(
                f"{name} needs an int attribute {attribute!r}, the {what}, got {value!r}; " + fix.format(attribute)
            )


def check_call(owner: object, method: Callable[..., Any], expected: str) -> None:
    """Check that a method takes positional arguments.

    Args:
        owner: the object that it belongs to.
        method: its method.
        expected: the names of the arguments, as in ``x_t, t``.

    Raises:
        UserError: it takes fewer, or needs more.
    """
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(*expected.split(", "))
    except TypeError as error:
        raise UserError(
            f"{describe_class(type(owner))} must accept {method.__name__}({expected}), and its signature is "
            f"{method.__name__}{signature}: {error}"
        ) from error
