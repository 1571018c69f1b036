"""Parse a command's options and build the objects that they name, with errors that a user can act on."""

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_ddpm import diffusion
from lightning_ddpm.commands.causes import find_user_code, find_user_error, list_causes
from lightning_ddpm.commands.option_errors import OptionChecker
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.instantiate import instantiate as build_objects
from lightning_ddpm.utils.jsonargparse_internals import keep_nested_text
from lightning_ddpm.utils.shipped import CONFIGS


def parse(parser: ArgumentParser, arguments: Sequence[str], command: str) -> Namespace:
    """Return a command's options.

    Args:
        parser: with ``exit_on_error=False``.
        arguments: the command line.
        command: its name.

    Raises:
        UserError: they are wrong; its sentence names the first wrong one and the nearest right one.
        Exception: a module of the user's that the options name failed.
    """
    parser.allow_abbrev = False
    try:
        with keep_nested_text():
            return parser.parse_args(complete_names(arguments))
    except Exception as error:  # a file may be no YAML
        failure = explain(error, parser, arguments, command)
    raise failure


def complete_names(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the path of each config that ships, and the module of each function of ours.

    ``--config digits`` names a file of the package. jsonargparse finds classes by their names alone, but not functions
    of :mod:`lightning_ddpm.diffusion`: ``--sampler.spacing quadratic_spacing``.
    """
    completed, option = list[str](), ""
    for word in arguments:
        if word.startswith("--") or word == "-c":
            option, equals, name = word.partition("=")
        else:
            equals, name = "", word
        kind = option.rpartition(".")[2]
        if "." in option and name.endswith(f"_{kind}") and name in vars(diffusion):
            name = f"{diffusion.__name__}.{name}"
            word = f"{option}={name}" if equals else name
        elif option in ("--config", "-c") and (shipped := CONFIGS.find(name)):
            word = f"{option}={shipped}" if equals else str(shipped)
        completed.append(word)
    return completed


def instantiate(
    parser: ArgumentParser, options: Namespace, kind: type = object, arguments: Mapping[str, Any] | None = None
) -> Namespace:
    """Return options with objects in place of the classes that they name; see :func:`utils.instantiate.instantiate`.

    Raises:
        Exception: what the class raised.
        UserError: a library that the class needs is not installed.
    """

    def replace(named: type, error: Exception) -> Exception:
        if isinstance(error, ImportError) and not find_user_code(error):  # a logger's package
            return UserError(f"{named.__name__} cannot be used here: {first_line(error)}")
        return error

    return build_objects(parser, options, kind, arguments, replace)


def explain(error: Exception, parser: ArgumentParser, arguments: Sequence[str], command: str) -> BaseException:
    """Return the exception behind jsonargparse's: the user's own, or a sentence on the first wrong option."""
    if mistake := find_user_error(error):
        return mistake
    if found := find_user_code(error):
        return found[0]
    try:
        OptionChecker(parser, command).check(arguments)
    except Exception as failure:
        if isinstance(failure, UserError) or find_user_code(failure):
            return failure
    if not isinstance(error, ArgumentError):
        return error
    *_, inner = list_causes(error)
    return UserError(f"{first_line(inner)}; {command} --help lists the options")
