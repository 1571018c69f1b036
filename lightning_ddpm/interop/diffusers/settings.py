"""Reading a configuration of diffusers: what is not supported here is an error that names it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_ddpm.utils.errors import UserError

VERSION = "0.32.0"
"""The oldest diffusers that a written folder is for."""

# Of each setting: what diffusers takes where a file does not say, and which values mean what is done here.
Settings = Mapping[str, tuple[object, tuple[object, ...]]]


def unsupported(name: str, value: object, supported: str, where: str) -> UserError:
    """The error that says which setting cannot be had, what it is, and what is supported."""
    return UserError(f"{where} has {name}={value!r}, which cannot be expressed here; supported: {supported}")


def check_class(config: Mapping[str, Any], supported: Sequence[str], where: str) -> None:
    """Refuse a configuration of another class."""
    if config.get("_class_name") not in supported:
        raise unsupported("_class_name", config.get("_class_name"), " and ".join(supported), where)


def check(config: Mapping[str, Any], settings: Settings, read: set[str], where: str) -> None:
    """Refuse what the settings do not support, and settings that are not known and not off."""
    for name, (default, supported) in settings.items():
        if config.get(name, default) not in supported:
            raise unsupported(name, config.get(name, default), " and ".join(map(repr, supported)), where)
    for name in sorted(config.keys() - settings.keys() - read):
        if not name.startswith("_") and config[name] not in (None, False):
            raise unsupported(name, config[name], "null", where)


def check_blocks(given: Sequence[str], plain: str, name: str, where: str) -> None:
    """Refuse blocks other than the plain ones and those with attention."""
    if not set(given) <= {plain, f"Attn{plain}"}:
        raise unsupported(name, list(given), f"{plain} and Attn{plain}", where)


def one_of(config: Mapping[str, Any], name: str, default: str, known: Mapping[str, Any], where: str) -> Any:
    """What the setting's name stands for, of those known."""
    value = config.get(name, default)
    if value not in known:
        raise unsupported(name, value, ", ".join(known), where)
    return known[value]


def list_of(config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> list[Any]:
    """The setting, a list of at least one such thing."""
    value = config.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, kind) for each in value):
        raise unsupported(name, value, "a list", where)
    return value


def whole(config: Mapping[str, Any], name: str, default: int, where: str) -> int:
    """The setting, a whole number of at least 1."""
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise unsupported(name, value, "a whole number of at least 1", where)
    return value


def number(config: Mapping[str, Any], name: str, default: float, where: str) -> float:
    """The setting, a number."""
    value = config.get(name, default)
    if type(value) not in (int, float):
        raise unsupported(name, value, "a number", where)
    return float(value)
