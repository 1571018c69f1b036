"""Download and extract data so that nobody ever sees half of them, also where several machines share the folder."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import flush_files
from lightning_ddpm.utils.locks import wait_for_folder

ASIDE = ".preparing-"
"""Begin of the names of folders in which data are prepared; a killed process may leave one."""


def prepare_aside(
    root: Path,
    name: str,
    is_ready: Callable[[], bool],
    download: Callable[[Path], object],
    archives: Sequence[str] = (),
) -> None:
    """Download data into a folder aside, and move them to their place when they are whole; one process at a time.

    The folder is in ``root``, on the same file system. A process that is killed leaves nothing at the data's place.
    Another process that needs the same data waits, and then finds them there.

    Args:
        root: the folder of the data; it is created, and need not be writable if the data are there.
        name: name of the dataset, for messages.
        is_ready: whether the data are in ``root``.
        download: downloads and extracts the data into a folder as it would into ``root``.
        archives: patterns of files in ``root`` that the download may find there and use.

    Raises:
        UserError: the data are not there and cannot be downloaded; the message gives the place where they belong.
    """
    root = Path(root)
    if is_ready():
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with wait_for_folder(root, name) as is_locked:
            found = os.listdir(root)  # NFS compares what it remembers of a folder when the folder is opened
            if is_ready():
                return
            for each in found if is_locked else ():
                if each.startswith(ASIDE):
                    shutil.rmtree(root / each, ignore_errors=True)
            aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=root))
            try:
                _link_archives(root, aside, archives)
                download(aside)
                flush_files()  # before the names are seen, so that whole files survive a failure of the machine
                _move(aside, root)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{name} is not in {root.absolute()} and could not be downloaded ({first_line(error)}); "
            "put it there in torchvision's layout, or set --data.root to the folder that has it"
        ) from error


def _link_archives(root: Path, aside: Path, patterns: Sequence[str]) -> None:
    """Let a download find archives that are there already."""
    for path in [path for pattern in patterns for path in root.glob(pattern) if path.is_file()]:
        link = aside / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())


def _move(source: Path, target: Path) -> None:
    """Move what is in a folder to another one: whole folders where there are none of their names, else their files."""
    for each in sorted(source.iterdir()):
        place = target / each.name
        if each.is_symlink():
            continue  # an archive that is there
        if each.is_dir() and place.is_dir():
            _move(each, place)
        else:
            os.replace(each, place)
