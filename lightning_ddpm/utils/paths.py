"""Interpret the paths that users give in options, configs, environment variables and Python: in this place only."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_ddpm.utils.errors import UserError

LIGHTNING_PATHS = ("default_root_dir", "save_dir", "dir", "dirpath", "ckpt_path")
"""Names of the arguments of Lightning's Trainer, loggers, callbacks and profilers that hold a path."""


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """Return the path that a user means, the same however often it is applied.

    ``~`` and ``~user`` become home folders; ``..`` is followed as the file system does, through links. A relative path
    stays relative, links stay links, and ``$VARIABLE`` is a name like any other: expanding it is the shell's part.

    Raises:
        UserError: it is empty, a URL, not UTF-8 or too long, or there is no such user.
    """
    text = os.fspath(path)
    shown = printable(text)
    if not text or "\0" in text:
        raise UserError("a path is empty or holds a null character; name a file or a folder, as in checkpoints/run")
    if found := re.match(r"(file:|[A-Za-z][A-Za-z0-9+.-]*://)", text):
        raise UserError(f"{shown} is a URL, and only local paths are read and written; remove {found[0]}")
    if shown != text:
        raise UserError(f"the path {shown} is not UTF-8, and could not be written into config.yaml; rename it")
    if any(len(os.fsencode(part)) > 255 for part in text.split(os.sep)):
        raise UserError(f"a name in {shown} is longer than 255 bytes; choose a shorter one")
    expanded = os.path.expanduser(text)
    if expanded == text and text.startswith("~"):
        user = text.partition(os.sep)[0]
        raise UserError(f"{text}: there is no home folder {user}; for a folder of that name, write ./{text}")
    if ".." in Path(expanded).parts:
        return Path(os.path.realpath(expanded))
    resolved = Path(expanded)
    return resolved.absolute() if str(resolved).startswith("~") else resolved  # pathlib drops the ./ before a ~


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a name with bytes that are not UTF-8 as ``\xe9``, for messages."""
    return os.fsencode(name).decode(errors="backslashreplace")


def resolve_lightning_paths(config: Any) -> None:
    """Apply :func:`resolve_path` to the paths that Lightning's classes would interpret by themselves.

    Args:
        config: parsed options, changed in place.
    """
    for holder, name in _find_paths(config):
        holder[name] = str(resolve_path(holder[name]))


def _find_paths(config: Any) -> Iterator[tuple[Any, str]]:
    """Yield each mapping that holds a path by one of these names, and the name."""
    if isinstance(config, list | tuple):
        for each in config:
            yield from _find_paths(each)
        return
    names = vars(config) if hasattr(config, "__dict__") else config if isinstance(config, dict) else {}
    for name, value in [*names.items()]:
        if name in LIGHTNING_PATHS and isinstance(value, str | os.PathLike):
            yield names, name
        else:
            yield from _find_paths(value)
