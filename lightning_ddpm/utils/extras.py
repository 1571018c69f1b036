"""Packages that some commands and data alone need, and so are extras of the installation."""

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from lightning_ddpm.utils.errors import UserError


def write_install_command(extra: str) -> str:
    """Return the command that installs what an extra consists of: the same from a clone, a wheel and an index.

    It names the packages, because lightning-ddpm itself may be on no index, or another program may have its name there.
    """
    try:
        needed = requires("lightning-ddpm") or []
    except PackageNotFoundError:  # not installed, but found on PYTHONPATH
        needed = []
    chosen = [each.partition(";")[0].strip() for each in needed if re.search(rf"extra == ['\"]{extra}['\"]", each)]
    return f"pip install {' '.join(map(repr, chosen))}" if chosen else f"install the extra {extra} of pyproject.toml"


def import_extra(module: str, what: str, extra: str) -> Any:
    """Return a module of a package that an extra installs.

    Args:
        module: the module.
        what: what needs it, for the message.
        extra: name of the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name and error.name.partition(".")[0] != package:
            raise UserError(f"{package} cannot be imported: {error.name} is missing; install it again") from error
        raise UserError(
            f"{what} need the package {package}, which is not installed: {write_install_command(extra)}"
        ) from error
