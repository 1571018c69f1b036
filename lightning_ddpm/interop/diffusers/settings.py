"""Read the settings of a diffusers configuration, and refuse those that are not supported."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_ddpm.utils.errors import UserError

VERSION = "0.32.0"
"""Oldest version of diffusers that can read an exported folder."""


SAMPLER_KEY = "_lightning_ddpm_sampler"
"""Key of this package's own sampler in scheduler_config.json, whose file has no place for it; diffusers skips it."""

Settings = Mapping[str, tuple[object, tuple[object, ...]]]
"""For each setting: diffusers' default, and the values that this package supports."""


MAX_SHOWN = 200
"""Longest value in a message."""


def make_model_index(pipeline: str, scheduler: str) -> dict[str, Any]:
    """Return the content of model_index.json: the classes of the pipeline and of its parts."""
    parts = {"scheduler": ["diffusers", scheduler], "unet": ["diffusers", "UNet2DModel"]}
    return {"_class_name": pipeline, "_diffusers_version": VERSION, **parts}


def describe_object(kind: type, **arguments: Any) -> dict[str, Any]:
    """Return the description of ``kind(**arguments)``, a class of :mod:`lightning_ddpm.diffusion`, in a checkpoint."""
    class_path = f"lightning_ddpm.diffusion.{kind.__name__}"
    return {"class_path": class_path, "init_args": arguments} if arguments else {"class_path": class_path}


class Config:
    """The settings in a JSON file of diffusers. Every method raises UserError if a value is not supported.

    Args:
        values: content of the file.
        where: name of the file in messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def check(self, supported: bool, name: str, value: object, choices: str) -> None:
        """Raise UserError with the setting's name, its value and the supported choices, unless it is supported."""
        if not supported:
            shown = repr(value) if len(repr(value)) <= MAX_SHOWN else f"{repr(value)[:MAX_SHOWN]}..."
            raise UserError(f"{self.where} has {name}={shown}, which is not supported; supported: {choices}")

    def check_class(self, supported: Sequence[str]) -> None:
        """Check that the configuration is of a supported class."""
        kind = self.values.get("_class_name")
        self.check(kind in supported, "_class_name", kind, " and ".join(supported))

    def check_settings(self, settings: Settings, read: set[str]) -> None:
        """Check these settings, and that all others are null or false, except those that are read elsewhere."""
        for name, (default, supported) in settings.items():
            value = self.values.get(name, default)
            self.check(value in supported, name, value, " and ".join(map(repr, supported)))
        for name in sorted(self.values.keys() - settings.keys() - read):
            value = self.values[name]
            self.check(name.startswith("_") or value in (None, False), name, value, "null")

    def read_choice(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """Return the object that the value of a setting stands for."""
        value = self.values.get(name, default)
        self.check(value in known, name, value, ", ".join(known))
        return known[value]

    def read_list(self, name: str, kind: type | tuple[type, ...]) -> list[Any]:
        """Return a setting that is a list of at least one item of this type."""
        value: Any = self.values.get(name)
        items: list[Any] = value if isinstance(value, list) else []
        self.check(bool(items) and all(isinstance(each, kind) for each in items), name, value, "a list")
        return items

    def read_positive_int(self, name: str, default: int) -> int:
        """Return a setting that is an integer of at least 1."""
        value: int = self.values.get(name, default)
        self.check(type(value) is int and value >= 1, name, value, "an integer of at least 1")
        return value

    def read_number(self, name: str, default: float) -> float:
        """Return a setting that is a number."""
        value = self.values.get(name, default)
        self.check(type(value) in (int, float), name, value, "a number")
        return float(value)
