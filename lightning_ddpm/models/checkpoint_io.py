"""How Lightning writes and reads checkpoints in this project."""

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins import CheckpointIO

from lightning_ddpm.models.checkpoint import read_checkpoint, write_checkpoint
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import first_line


class DurableCheckpointIO(CheckpointIO):
    """Whole files with a digest, the one before kept; read without running what is in them.

    A checkpoint that cannot be written is said and remembered, not raised: training may go on until the next one.

    Attributes:
        failed: why the last one could not be written; ``None`` where it could.
    """

    def __init__(self) -> None:
        self.failed: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.failed = None
        try:
            write_checkpoint(Path(path), checkpoint)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            self.failed = error
            step = checkpoint["global_step"]
            report(f"cannot write {path} at step {step} ({first_line(error)}); what was there is kept")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
