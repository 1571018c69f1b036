"""Read the settings of a diffusers configuration, and refuse those that are not supported."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_ddpm.utils.errors import UserError

VERSION = "0.32.0"
"""Oldest version of diffusers that can read an exported folder."""

Settings = Mapping[str, tuple[object, tuple[object, ...]]]
"""For each setting: diffusers' default, and the values that this package supports."""


class SettingError(UserError):
    """A setting of the file ``where`` has a value that is not supported."""

    def __init__(self, name: str, value: object, supported: str, where: str) -> None:
        super().__init__(f"{where} has {name}={value!r}, which is not supported; supported: {supported}")


def check_class(config: Mapping[str, Any], supported: Sequence[str], where: str) -> None:
    """Raise SettingError if the configuration is of another class."""
    if config.get("_class_name") not in supported:
        raise SettingError("_class_name", config.get("_class_name"), " and ".join(supported), where)


def check_settings(config: Mapping[str, Any], settings: Settings, read: set[str], where: str) -> None:
    """Raise SettingError for unsupported values, and for unknown settings other than null and false."""
    for name, (default, supported) in settings.items():
        if config.get(name, default) not in supported:
            raise SettingError(name, config.get(name, default), " and ".join(map(repr, supported)), where)
    for name in sorted(config.keys() - settings.keys() - read):
        if not name.startswith("_") and config[name] not in (None, False):
            raise SettingError(name, config[name], "null", where)


def check_blocks(given: Sequence[str], plain: str, name: str, where: str) -> None:
    """Raise SettingError for blocks other than the plain ones and those with attention."""
    if not set(given) <= {plain, f"Attn{plain}"}:
        raise SettingError(name, list(given), f"{plain} and Attn{plain}", where)


def read_choice(config: Mapping[str, Any], name: str, default: str, known: Mapping[str, Any], where: str) -> Any:
    """Return the object that the value of a setting stands for."""
    value = config.get(name, default)
    if value not in known:
        raise SettingError(name, value, ", ".join(known), where)
    return known[value]


def read_list(config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> list[Any]:
    """Return a setting that is a list of at least one item of this type."""
    value = config.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, kind) for each in value):
        raise SettingError(name, value, "a list", where)
    return value


def read_positive_int(config: Mapping[str, Any], name: str, default: int, where: str) -> int:
    """Return a setting that is an integer of at least 1."""
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise SettingError(name, value, "an integer of at least 1", where)
    return value


def read_number(config: Mapping[str, Any], name: str, default: float, where: str) -> float:
    """Return a setting that is a number."""
    value = config.get(name, default)
    if type(value) not in (int, float):
        raise SettingError(name, value, "a number", where)
    return float(value)
