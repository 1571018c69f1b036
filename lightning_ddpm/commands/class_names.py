"""Classes that options name: which there are, which one a name means, and what their parameters are."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from inspect import isabstract, isclass, signature
from pkgutil import iter_modules
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor

from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.utils.contracts import describe_missing_methods, is_ours
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.jsonargparse_internals import Option, list_options
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.yaml_text import build_parser

MAX_LISTED = 24
"""Longer lists of names are not printed."""


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ``; did you mean X?`` for the known name that is nearest to a wrong one, or nothing where none is near."""
    nearest = get_close_matches(name, [*known], n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def list_subclasses(*kinds: type) -> dict[str, type]:
    """Return the classes of these kinds that have been imported, by name: public, not abstract."""
    found: dict[str, type] = {}
    unseen = [*kinds]
    while unseen:
        kind = unseen.pop()
        unseen.extend(kind.__subclasses__())
        if not isabstract(kind) and "<locals>" not in kind.__qualname__ and not kind.__name__.startswith("_"):
            found.setdefault(kind.__name__, kind)
    return found


def list_classes(*kinds: type) -> str:
    """Return the names of this package's classes of these kinds that options can build, sorted: none takes images.

    Those of other packages follow where there are few, as loggers.
    """
    found = {name: each for name, each in list_subclasses(*kinds).items() if each not in kinds}
    ours = [name for name, each in found.items() if re.match(r"lightning_ddpm\.(?!commands\.)", each.__module__)]
    taken = {name: {each.annotation for each in signature(found[name]).parameters.values()} for name in ours}
    ours = sorted(name for name in ours if Tensor not in taken[name])
    others = sorted(found.keys() - taken.keys()) if ours else []
    return ", ".join([*ours, *others] if len(found) <= MAX_LISTED // 2 else ours)


def find_class(name: str, kinds: tuple[type, ...], word: str, place: str) -> type | None:
    """Return the class that an option names; ``None`` for a function in its place.

    Args:
        name: a class by its name alone, or with its module.
        kinds: the classes that it may be derived from.
        word: what it is for, as in ``sampler``.
        place: where it is named, for the message.

    Raises:
        UserError: there is no such class, or it is of another kind.
        Exception: its module cannot be imported.
    """
    listed = list_classes(*kinds)
    is_short = bool(listed) and listed.count(",") < MAX_LISTED
    if "." in name:
        found = _import(name, word, place)
    else:
        known = list_subclasses(*kinds)
        if name not in known:
            fix = suggest(name, listed.split(", ")) or suggest(name, known)
            there_are = f"{' There' if fix else '; there'} are {listed}" if is_short else ""
            raise UserError(f"there is no {word} {name}{place}{fix}{there_are}")
        found = known[name]
    if not isclass(found):
        return None
    if issubclass(found, kinds) and isabstract(found) and not is_ours(found):
        raise UserError(f"{describe_missing_methods(found)}, which a {word} needs; add it")
    if not issubclass(found, kinds) or isabstract(found):
        what = "is abstract" if issubclass(found, kinds) else f"is no {' or '.join(kind.__name__ for kind in kinds)}"
        raise UserError(f"{name}{place} {what}{f'; there are {listed}' if is_short else ''}")
    return found


def _import(path: str, word: str, place: str) -> Any:
    """Return the object of a dotted path.

    Raises:
        UserError: a part of it does not exist.
    """
    found, parts = None, path.split(".")
    for index, part in enumerate(parts):
        parent, so_far = found, ".".join(parts[: index + 1])
        if hasattr(parent, part):
            found = getattr(parent, part)
            continue
        try:
            found = import_module(so_far)
        except ModuleNotFoundError as error:
            if error.name != so_far:  # a module that theirs imports
                raise
            nearby = [*dir(parent), *(each.name for each in iter_modules(getattr(parent, "__path__", [])))]
            fix = suggest(".".join(parts), [".".join([*parts[:index], each, *parts[index + 1 :]]) for each in nearby])
            missing = f"; there is no module {part} in the folders that Python searches" if parent is None else ""
            raise UserError(f"there is no {word} {path}{place}{fix if parent else missing}") from None
    return found


def list_parameters(kind: type, given_by_code: int = 0) -> dict[str, Option]:
    """Return the parameters of a class that options can set, by name.

    Args:
        kind: the class.
        given_by_code: number of its first parameters that the program gives, as the weights of an optimizer.
    """
    parser = build_parser()
    parser.add_class_arguments(kind, skip={given_by_code} if given_by_code else None, fail_untyped=False)
    return {option.name: option for option in list_options(parser)}


def split_annotation(annotation: Any) -> list[Any]:
    """Return the alternatives of a type that is a union, or the type alone."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for each in get_args(annotation) for part in split_annotation(each)]
    return [annotation]


def find_kinds(annotation: Any) -> tuple[tuple[type, ...], int]:
    """Return the classes whose subclasses a value of this type may name, and how many parameters the program gives."""
    kinds: list[type] = []
    given = 0
    for each in split_annotation(annotation):
        if get_origin(each) is Callable and len(get_args(each)) == 2 and isinstance(get_args(each)[0], list):
            returned, _ = find_kinds(get_args(each)[1])
            kinds += returned
            given = len(get_args(each)[0]) if returned else given
        elif isclass(each) and get_origin(each) is None and not each.__module__.startswith(("builtins", "pathlib")):
            kinds += [each] if each is not Tensor else []  # as a learning rate may be
    return tuple(kinds), given


def get_element_type(annotation: Any) -> Any:
    """Return the type of the elements where a value of this type may be a list; ``None`` where it may not."""
    lists = [each for each in split_annotation(annotation) if get_origin(each) not in (None, Callable, Literal, dict)]
    return get_args(lists[0])[0] if lists and get_args(lists[0]) else None


def describe_type(annotation: Any) -> str:
    """Return a type in words, as in ``int or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(part for each in arguments for part in describe_type(each).split(" or ")))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is Callable:
        return "an importable function"
    if origin is tuple:
        return f"[{', '.join(describe_type(each) for each in arguments if each is not ...)}]"
    if origin not in (None, dict) and arguments:
        return f"a list of {describe_type(arguments[0])}"
    if annotation in (resolve_path, locate_checkpoint):
        return "a path"
    if annotation in (None, type(None), bool):
        return "true or false" if annotation is bool else "null"
    return str(getattr(annotation, "__name__", annotation))
