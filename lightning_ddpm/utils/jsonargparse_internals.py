"""Every use of jsonargparse's private API, with the reason; tests fail in words when a release changes one."""

from argparse import Action
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isroutine
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    _typehints,
)
from jsonargparse._common import parsing_settings
from jsonargparse._util import NestedArg


class Option(NamedTuple):
    """An option of a parser.

    Attributes:
        name: its destination, as in ``trainer.max_steps``.
        spellings: the names that it goes by on the command line, without their dashes.
        annotation: the type of its value, or of each of its values; ``None`` where any text is accepted.
        nargs: the number of values as argparse counts them; ``None`` for exactly one, 0 for a switch.
        required: whether it must be given.
        is_config: whether its value is a file of options.
    """

    name: str
    spellings: tuple[str, ...]
    annotation: Any
    nargs: int | str | None
    required: bool
    is_config: bool


class HelpFormatter(DefaultHelpFormatter):
    """Help that gives no type for an option whose value a function reads; jsonargparse prints the function's address.

    No public setting leaves the type of an option out.
    """

    def _get_type_str(self, action: Action) -> str | None:
        kind: str | None = None if isroutine(action.type) else super()._get_type_str(action)
        return kind


def list_options(parser: ArgumentParser) -> list[Option]:
    """Return the options of a parser, without those that print help.

    A parser has no public list of its options, and none of the types of their values; ``add_class_arguments`` turns a
    class into a parser, so that this is also how the parameters of a class are found.
    """
    return [
        Option(
            action.dest,
            tuple(name.lstrip("-") for name in action.option_strings if not name.endswith("+")),
            Literal[tuple(action.choices)] if action.choices else getattr(action, "_typehint", action.type),
            action.nargs,
            action.required or action.dest in parser._extra_required_keys,
            isinstance(action, ActionConfigFile),
        )
        for action in parser._actions
        if action.dest != "help" and not action.dest.endswith(".help")
    ]


def accept_value(parser: ArgumentParser, name: str, value: str) -> None:
    """Let an option that comes from the signature of a library's class take one more text.

    There is no public way to change the type of an option that ``add_class_arguments`` added.

    Args:
        parser: the parser.
        name: the option's destination.
        value: the text.
    """
    (action,) = (each for each in parser._actions if each.dest == name)
    action._typehint = Union[action._typehint, Literal[value]]  # type: ignore[attr-defined]  # noqa: UP007


def prefer_integers(parser: ArgumentParser) -> None:
    """Let every option that takes an int or a float read ``1`` as an int, whatever was imported before.

    jsonargparse tries the types of a union in their order, and the order of Lightning's ``Optional[Union[int, float]]``
    depends on other libraries: typing keeps the last 128 objects, ``Optional[Union[float, int]]`` is equal to it, and
    the first one made is returned for both. ``limit_val_batches: 1`` would then be all batches instead of one.
    """
    for action in parser._actions:
        types = get_args(annotation := getattr(action, "_typehint", None))
        if get_origin(annotation) is Union and {int, float} <= set(types):
            action._typehint = Union[(int, *types)]  # type: ignore[attr-defined]


@contextmanager
def restore_parsing_settings() -> Iterator[None]:
    """Undo, after the context, what ``set_parsing_settings`` changed in it.

    It is the public way to change the settings, which are global, but they cannot be read, nor an entry of the lists of
    imports taken away again.
    """
    before = dict(parsing_settings)
    try:
        yield
    finally:
        parsing_settings.update(before)


class _List(list[Any]):
    """A list that is formatted as the text that it was read from."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Dict(dict[str, Any]):
    """A mapping that is formatted as the text that it was read from."""

    text: str

    def __str__(self) -> str:
        return self.text


@contextmanager
def keep_nested_text() -> Iterator[None]:
    """Let an option of a class in a class, such as ``--model.network.classes null``, reach its class as it was typed.

    On the way through the outer classes jsonargparse reads the value as YAML and formats it by Python, so that null
    becomes the string ``None``. No public setting changes that.
    """
    module: Any = _typehints
    original = module.parse_value_or_config

    def parse_value(value: Any, *args: Any, **kwargs: Any) -> Any:
        parsed, path = original(value, *args, **kwargs)
        if isinstance(value, NestedArg) and isinstance(value.val, str):
            if parsed.val is None:
                parsed = value
            elif type(parsed.val) in (list, dict):
                kept = (_List if isinstance(parsed.val, list) else _Dict)(parsed.val)
                kept.text = value.val
                parsed = NestedArg(value.key, kept)
        return parsed, path

    module.parse_value_or_config = parse_value
    try:
        yield
    finally:
        module.parse_value_or_config = original
