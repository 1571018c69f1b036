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


def name_checkpoint(path: Path) -> str:
    """Return a short name of a checkpoint that :func:`locate_checkpoint` found: what ``--ckpt`` takes, or the file's.

    That is ``digits`` for one that ships, ``hf://USER/MODEL@COMMIT`` for one from the Hub, and the name of any other
    file.
    """
    if (shipped := CHECKPOINTS.find(path.stem)) and shipped.resolve() == path.resolve():  # or a path that leads to it
        return path.stem
    return hub.find_address(path) or path.name
