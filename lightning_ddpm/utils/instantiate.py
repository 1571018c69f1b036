"""Build the objects that options name."""

from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace


def instantiate(
    parser: ArgumentParser,
    options: Namespace,
    kind: type = object,
    arguments: Mapping[str, Any] | None = None,
    replace: Callable[[type, Exception], Exception] = lambda named, error: error,
) -> Namespace:
    """Return options with objects in place of the classes that they name.

    Args:
        parser: the parser of the options.
        options: as parsed.
        kind: objects of this class get further arguments.
        arguments: these arguments, in place of those in the options. A long list should be given here: jsonargparse
            copies a list once for each of its items.
        replace: returns the exception to raise for one of a class.

    Raises:
        Exception: what the class raised. jsonargparse tries every type that a value may have and reports them together.
    """
    failures: list[Exception] = []

    def build(named: type, *args: Any, **kwargs: Any) -> Any:
        more = arguments if arguments and isinstance(named, type) and issubclass(named, kind) else {}
        try:
            return named(*args, **{**kwargs, **more})
        except Exception as error:
            failures.append(replace(named, error))
            raise

    try:
        built: Namespace = parser.instantiate(options, instantiators=[(build, object, True)])
        return built
    except Exception as error:
        failure = failures[0] if failures else error
    raise failure
