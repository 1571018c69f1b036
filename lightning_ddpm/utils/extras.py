"""Import packages that are needed by some data alone, and so are extras of the installation."""

from importlib import import_module
from typing import Any

from lightning_ddpm.utils.errors import UserError


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
            f"{what} need the package {package}, which is not installed: pip install 'lightning-ddpm[{extra}]'"
        ) from error
