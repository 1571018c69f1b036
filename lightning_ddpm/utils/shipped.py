"""Find what ships with the package by its name: configs, checkpoints and the template of a new project.

A wheel holds them inside the package; in the repository they stand beside it, where they are read and changed.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]


class Shipped(NamedTuple):
    """A folder of files that ship.

    Attributes:
        inside: where it stands in the package of a wheel.
        beside: where it stands in the repository.
        suffix: that of its files' names.
    """

    inside: str
    beside: str
    suffix: str

    def get_folder(self) -> Path:
        """Return where the folder is here."""
        inside = PACKAGE / self.inside
        return inside if inside.is_dir() else PACKAGE.parent / self.beside

    def list_names(self) -> list[str]:
        """Return the names of its files, without their suffix."""
        return sorted(path.stem for path in self.get_folder().glob(f"*{self.suffix}"))

    def find(self, name: str | os.PathLike[str]) -> Path | None:
        """Return the file of this name; ``None`` if there is none, or the working folder holds something of this name.

        Args:
            name: as the user gave it; a path and a name with a suffix are never names of files that ship.
        """
        text = os.fspath(name)
        if not re.fullmatch(r"\w+", text) or os.path.lexists(text):
            return None
        path = self.get_folder() / f"{text}{self.suffix}"
        return path if path.is_file() else None

    def suggest(self, name: str | os.PathLike[str]) -> str:
        """Return which names a user may have meant by one that leads to no file, for a message; empty if it is a path.

        Args:
            name: as the user gave it.
        """
        text, names = os.fspath(name), self.list_names()
        if Path(text).stem in names:
            return f"; {Path(text).stem}, without folder and suffix, is the one that ships"
        return f"; those that ship are {', '.join(names)}" if re.fullmatch(r"\w+", text) else ""


CONFIGS = Shipped("configs", "configs", ".yaml")
CURVES = Shipped("configs/curves", "configs/curves", ".json")
CHECKPOINTS = Shipped("pretrained", "checkpoints/pretrained", ".ckpt")
TEMPLATE = Shipped("template", "template", "")
"""The files of a new project, which :mod:`lightning_ddpm.commands.new` copies."""
