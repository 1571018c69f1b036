"""Where a checkpoint comes from: a file, the package itself, or Hugging Face's Hub."""

import os
from pathlib import Path

from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.shipped import CHECKPOINTS


def locate_checkpoint(path: Path | str) -> Path:
    """Return the file of a checkpoint, the same however often it is applied.

    Args:
        path: a path, or the name of a checkpoint that ships, such as ``digits``.

    Raises:
        UserError: it is no path.
    """
    return CHECKPOINTS.find(path) or resolve_path(os.fspath(path))
