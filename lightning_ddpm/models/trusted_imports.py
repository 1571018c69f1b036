"""A check that files which name classes and functions import only code that the user trusts."""

import functools
import os
import pkgutil
import re
import site
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import set_parsing_settings

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.jsonargparse_internals import restore_parsing_settings
from lightning_ddpm.utils.yaml_text import load_yaml

TRUSTED_MODULES = ("lightning_ddpm", "torch.nn", "torch.optim")
"""Modules that a file may import from; the user adds others by ``$LIGHTNING_DDPM_TRUST``, separated by commas."""
ENTRY_POINTS = "lightning_ddpm.trust"
"""The group of entry points by which an installed distribution adds the package of its own name, and no other."""

NEVER_SUGGESTED = {*sys.stdlib_module_names, "torch", "pytorch_lightning", "lightning_fabric", "numpy", "yaml"}
"""Modules that hold functions which run commands or read any file: no message suggests to trust them."""
NOT_BUILT = ("_instantiator", "optimizer", "lr_scheduler")
"""Hyper-parameters that a model is built without: nothing is trained, and a newer torch may have other arguments."""


def list_modules_to_trust(parameters: Mapping[str, Any]) -> list[str]:
    """Return the modules that a user must add to ``$LIGHTNING_DDPM_TRUST`` before a checkpoint's model can be built.

    Args:
        parameters: the checkpoint's hyper-parameters.
    """
    return _list_others(parameters, _list_allowed())


def list_foreign_modules(parameters: Mapping[str, Any]) -> list[str]:
    """Return the modules of other packages, trusted here or not, that a checkpoint's model is built from.

    Args:
        parameters: the checkpoint's hyper-parameters.
    """
    return _list_others(parameters, TRUSTED_MODULES)


def _list_others(parameters: Mapping[str, Any], allowed: tuple[str, ...]) -> list[str]:
    """Return the modules, besides the allowed ones, that building a model imports."""
    built = {name: each for name, each in parameters.items() if name not in (*NOT_BUILT, "class_names")}
    names = [name for name in _find_names(built) if not _is_within(name, allowed)]
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def _list_allowed() -> tuple[str, ...]:
    """Return the modules that may be imported from.

    Raises:
        UserError: the user's are no names of modules.
    """
    trusted = [name.strip() for name in os.environ.get("LIGHTNING_DDPM_TRUST", "").split(",") if name.strip()]
    for name in trusted:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"LIGHTNING_DDPM_TRUST lists modules, separated by commas, such as my_networks,my_data, got {name!r}"
            )
    return (*TRUSTED_MODULES, *_list_installed(), *trusted)


def _list_installed() -> list[str]:
    """Return the packages whose distributions are installed with an entry point of :data:`ENTRY_POINTS`.

    Whoever installs a distribution runs its code, so that this trusts nobody new. A file can name what is in these
    packages, not what they import. A distribution can add only the package that it is named after, so that none opens
    the door to another one, and only one in Python's own folders of packages counts, not one in the working folder or
    on ``PYTHONPATH``: it may have been downloaded together with the file.
    """
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    found = []
    for each in distributions(path=folders):
        for entry in each.entry_points.select(group=ENTRY_POINTS):
            owner = re.sub(r"[-.]+", "_", each.name).lower()
            found += [owner] if entry.value == owner and owner not in NEVER_SUGGESTED else []
    return found


@contextmanager
def restrict_imports(path: Path | str, config: object) -> Iterator[None]:
    """Let jsonargparse import only from :data:`TRUSTED_MODULES`, and the user's, inside the context.

    An import runs the module, which may lie next to the file. An object counts as part of the module that defines it:
    ``lightning_ddpm.utils.files.os.system`` is ``posix.system``, which is refused.

    Args:
        path: the file that names the objects, for the message.
        config: what the file holds, as plain data.

    Raises:
        UserError: it names an object of another module, or one that lightning_ddpm no longer has.
    """
    allowed = _list_allowed()
    with restore_parsing_settings():  # options of the command line may name anything
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(allowed))
        try:
            yield
        except Exception as error:
            if message := _explain_failure(config, allowed):
                raise UserError(f"{path} {message}") from error
            raise


def _explain_failure(config: object, allowed: tuple[str, ...]) -> str | None:
    """Return why the objects named in the config cannot be imported; ``None`` if all of them can.

    jsonargparse has refused what it must before this is called, so that this imports from allowed modules only.
    """
    refused: list[str] = []
    for name in _find_names(config):
        found = name
        if _is_within(name, allowed):
            try:
                found = _get_defining_name(pkgutil.resolve_name(name)) or name
            except (ImportError, AttributeError) as error:
                if not _is_within(name, ("lightning_ddpm",)):
                    where = "run the command in the folder of its module, or add that folder to PYTHONPATH"
                    return f"names {name}, which cannot be imported here ({error}); {where}"
                return (
                    f"was written by an older version of lightning_ddpm: it names {name}, which this version does not "
                    "have; see the table of renames in CHANGELOG.md"
                )
        refused += [] if _is_within(found, allowed) else [found]
    if not refused:
        return None
    never = next((name for name in refused if name.split(".")[0] in NEVER_SUGGESTED), None)
    users = [name for name in allowed if name not in (*TRUSTED_MODULES, *_list_installed())]
    modules = ",".join(dict.fromkeys([*users, *(each.split(".")[0] for each in refused)]))
    fix = "do not use this file" if never else f"if you trust that code, set LIGHTNING_DDPM_TRUST={modules}"
    named, ours = never or refused[0], ", ".join(TRUSTED_MODULES)
    return f"is refused: it names {named}, which is not part of {ours}, and building it would run its code; {fix}"


def _find_names(config: object) -> Iterator[str]:
    """Yield every class path, and every other dotted name of a module that exists, at any depth of the config."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("class_path", "_class_path") and isinstance(value, str) and "." in value:
                yield value
            else:
                yield from _find_names(value)
    elif isinstance(config, list | tuple):
        for each in config:
            yield from _find_names(each)
    elif isinstance(config, str) and "." in config and all(part.isidentifier() for part in config.split(".")):
        with suppress(ImportError, ValueError):  # of find_spec, which does not run the module
            if (top := config.split(".")[0]) in sys.modules or find_spec(top):
                yield config
    elif isinstance(config, str) and config.lstrip().startswith(("{", "[")):  # jsonargparse parses it, too
        with suppress(yaml.YAMLError, UserError):
            yield from _find_names(load_yaml(config))


def _is_within(name: str, modules: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _get_defining_name(found: object) -> str | None:
    """Return the name under which an object, or the class of an instance, was defined; ``None`` if it has none."""
    if isinstance(found, functools.partial):
        return _get_defining_name(found.func)
    if isinstance(found, ModuleType):
        return found.__name__
    named = found if hasattr(found, "__qualname__") else type(found)
    return f"{named.__module__}.{named.__qualname__}" if named.__module__ else None
