"""The folder of a run: which checkpoint a command takes from it, and what keeps a run from being overwritten."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm.models.checkpoint import pending_path, previous_path, read_checkpoint, read_newest_checkpoint
from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable, write_atomically
from lightning_ddpm.utils.locks import lock_folder
from lightning_ddpm.utils.run_files import CHECKPOINTS, CONFIG, PREDICTIONS, UNSAVED, find_checkpoint, find_run_file

DEFAULT = "checkpoints/run"
"""The run's folder where trainer.default_root_dir is not given."""
ANOTHER = "start another run with --trainer.default_root_dir FOLDER"


class Source(NamedTuple):
    """What a command starts from.

    Attributes:
        path: the checkpoint; ``None`` for initial weights.
        content: what it holds.
        resumes: whether it is a run's, with an optimizer, and ``fit`` continues that run.
        begins_again: whether the run in the folder was stopped before its first checkpoint, and ``fit`` repeats it.
    """

    path: Path | None
    content: dict[str, Any] | None
    resumes: bool
    begins_again: bool = False

    def is_in(self, folder: Path) -> bool:
        """Return whether a run is resumed from a checkpoint of its own, in its folder."""
        return self.resumes and self.path is not None and self.path.resolve().is_relative_to(folder.resolve())

    def get_origin(self, folder: Path) -> str | None:
        """Return the path of the checkpoint that a new run starts from, or an empty one; ``None`` for no new run."""
        return None if self.is_in(folder) else str(self.path.resolve() if self.path else "")


def is_first_rank() -> bool:
    """Return whether this process is the first of a run's, before the Trainer exists."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


def enter_run_folder(folder: Path) -> AbstractContextManager[None]:
    """Create the folder, and return the lock that keeps other runs out of it.

    Raises:
        UserError: the folder cannot be written, or is in use by another run.
    """
    check_writable(folder)
    for name in (CONFIG, UNSAVED, *CHECKPOINTS):
        if os.path.isdir(folder / name):
            raise UserError(
                f"{folder / name} is a folder, and a file of the run is written there; rename it, or {ANOTHER}"
            )
    return lock_folder(folder, f"wait for it to end, or {ANOTHER}")


def find_source(folder: Path, requested: str | None, command: str) -> Source:
    """Read the checkpoint that a command starts from.

    Args:
        folder: the run's.
        requested: a path, ``last`` or ``best`` for the newest undamaged one of that name in the folder, or ``None``.
        command: its name.

    Raises:
        UserError: there is no such checkpoint, or it cannot be read.
    """
    if requested in ("last", "best"):
        wanted = folder / f"{requested}.ckpt"
        if not any(each.is_file() for each in (wanted, pending_path(wanted), previous_path(wanted))):
            return _begin_again(folder, requested, command)
        content, path = read_newest_checkpoint(wanted)
        if path != wanted:
            rank_zero_only(report)(f"{wanted} is missing or damaged; using the previous one, {path}")
    elif requested:
        path = Path(requested)
        content = read_checkpoint(path)
    elif command == "fit":
        return Source(None, None, False)
    else:
        raise UserError(f"{command} needs trained weights: give --ckpt_path RUN/last.ckpt")
    trained = content.get("optimizer_states") != []  # else an imported model, to fine-tune
    return Source(path, content, command == "fit" and trained)


def _begin_again(folder: Path, requested: str, command: str) -> Source:
    """Return what a run started from that was stopped before its first checkpoint.

    Raises:
        UserError: the folder holds no such run.
    """
    started = folder / UNSAVED
    if command == "fit" and requested == "last" and started.is_file() and not find_checkpoint(folder):
        origin = started.read_text(encoding="utf-8").strip()
        rank_zero_only(report)(
            f"the run in {folder} was stopped before its first checkpoint; it begins again at step 0"
        )
        return find_source(folder, origin or None, command)._replace(begins_again=True)
    found = find_checkpoint(folder) or find_run_file(folder)
    there = f"; there is {found}" if found else ", nor any other file of a run"
    if command != "fit":
        fix = "give --ckpt_path FILE, or the run's folder as --trainer.default_root_dir"
    elif found:
        fix = f"bring the checkpoint back, give another one by --ckpt_path FILE, or {ANOTHER}"
    else:
        fix = "to start a run leave --ckpt_path out; to resume one give its folder as --trainer.default_root_dir"
    if requested == "best":
        fix = f"a run has one once the metric of Checkpoints' monitor was measured; use --ckpt_path last, or {fix}"
    raise UserError(f"there is no checkpoint {folder / f'{requested}.ckpt'}{there}; {fix}")


def check_unused(folder: Path, source: Source) -> bool:
    """Refuse to start a run over another one's files, and return whether the folder holds none.

    Args:
        folder: where the run will be.
        source: what it starts from; a run that is resumed from its own checkpoint in the folder goes on there.

    Raises:
        UserError: the folder holds a file of another run.
    """
    if source.is_in(folder) or source.begins_again:
        return False
    if found := find_run_file(folder, ignored=source.path):
        raise UserError(
            f"{folder} already holds a run: there is {found}; resume it with --ckpt_path last, {ANOTHER}, or delete "
            "its files"
        )
    return True


def check_no_predictions(folder: Path) -> None:
    """Raise UserError if ``predict`` has written images into the run's folder already: two sets would be mixed."""
    predictions = folder / PREDICTIONS
    if next(predictions.glob("*.png"), None):
        raise UserError(f"{predictions} holds images already; move or delete them, and run the same command again")
    if predictions.exists():
        check_writable(predictions)


def note_origin(folder: Path, origin: str) -> None:
    """Write what the run in a folder started from; the note is removed when its first checkpoint is written."""
    write_atomically(folder / UNSAVED, lambda file: file.write(origin.encode()))


def read_checkpoint_option(arguments: Sequence[str], parsed: str | None) -> str | None:
    """Return ``--ckpt_path`` as the command line gives it.

    It is where one call of a command starts, so that a config does not hold it; one of an earlier version may.

    Args:
        arguments: the command line.
        parsed: the value after the configs were read, too.
    """
    given = [index for index, word in enumerate(arguments) if word.partition("=")[0] == "--ckpt_path"]
    if given:
        _, equals, value = arguments[given[-1]].partition("=")
        value = value if equals else arguments[given[-1] + 1]
        if value in ("null", "None"):
            return None
        return value if value in ("last", "best") else str(locate_checkpoint(value))
    if parsed is not None:
        rank_zero_only(report)(f"ckpt_path {parsed} in a config is ignored; give --ckpt_path on the command line")
    return None
