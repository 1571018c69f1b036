"""Where a checkpoint comes from: a file, the package itself, or Hugging Face's Hub."""

import os
from pathlib import Path

from lightning_ddpm.interop import hub
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.shipped import CHECKPOINTS


def locate_checkpoint(path: Path | str) -> Path:
    """Return the file of a checkpoint, the same however often it is applied.

    Args:
        path: a path, the name of a checkpoint that ships, such as ``digits``, or ``hf://USER/MODEL``, which is
            downloaded.

    Raises:
        UserError: it is no path, or the model cannot be downloaded.
    """
    if isinstance(path, str) and path.startswith(hub.SCHEME):
        return hub.download(path)
    return CHECKPOINTS.find(path) or resolve_path(os.fspath(path))
