"""Every use of jsonargparse's private API, with the reason; tests fail in words when a release changes one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from jsonargparse._common import parsing_settings


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
