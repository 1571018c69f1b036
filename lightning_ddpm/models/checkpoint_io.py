"""The plugin through which Lightning writes and reads checkpoints."""

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins import CheckpointIO

from lightning_ddpm.models.checkpoint import link_checkpoint, read_checkpoint, write_checkpoint
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import first_line


class DurableCheckpointIO(CheckpointIO):
    """Writes complete files with a digest and keeps the previous one; reads without running code in the file.

    If a checkpoint cannot be written, this is reported and kept in ``failed``, not raised: training may continue until
    the next one.

    Attributes:
        failed: why the last checkpoint could not be written; ``None`` if it was.
    """

    def __init__(self) -> None:
        self.failed: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.failed = None
        try:
            write_checkpoint(Path(path), checkpoint)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            self.failed = error
            step = checkpoint["global_step"]
            report(f"cannot write {path} at step {step} ({first_line(error)}); the previous one is kept")

    def link_checkpoint(self, path: Path, written: Path) -> bool:
        """Make a checkpoint a link to the one that was written last, with equal content; return whether it is one."""
        if self.failed:
            return False
        try:
            link_checkpoint(path, written)
        except OSError:  # a file system without hard links
            return False
        return True

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
