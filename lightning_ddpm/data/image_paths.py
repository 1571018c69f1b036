"""List the image files of a folder, without output of the program, and refuse unsafe paths."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_ddpm.data.file_table import FileTable, get_stat
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.run_files import is_output, is_trajectory, list_outputs

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")
NOT_READ = "the folders of a run and of samples below it are output, which is read only if it is named itself"


def list_images(
    folder: Path,
    skipped: list[Path] | None = None,
    ignored: Collection[str] = (),
    extensions: tuple[str, ...] = EXTENSIONS,
) -> list[Path]:
    """Return the sorted paths of all images in a folder and its subfolders, without hidden files and folders.

    What commands write is output and never input: the images of a run, a subfolder that ``sample``, ``restore`` or a
    run wrote, overviews and animations (:mod:`lightning_ddpm.utils.run_files`). ``folder`` itself may be of samples.

    Links to folders are not followed; they are among the paths, and :func:`resolve_inside` refuses them.

    Args:
        skipped: subfolders that are output are appended to it.
        ignored: names of subfolders to leave out.
        extensions: of the files that are listed.

    Raises:
        UserError: a folder cannot be listed.
    """
    found = sorted((each.path for each in _walk(folder, skipped, ignored, extensions)), key=_order)
    return [path for path in map(Path, found) if not is_trajectory(path)]


def tabulate_images(
    folder: Path, root: Path, skipped: list[Path] | None = None, extensions: tuple[str, ...] = EXTENSIONS
) -> FileTable:
    """Return the table of the images that :func:`list_images` lists, with one stat of each file.

    Args:
        folder, skipped, extensions: as there.
        root: the folder of the table, which is or holds ``folder``.

    Raises:
        UserError: a folder cannot be listed.
    """
    begin = len(os.path.join(root, ""))
    found = [(each.path[begin:], get_stat(each)) for each in _walk(folder, skipped, (), extensions)]
    found.sort(key=lambda each: _order(each[0]))
    # only a .gif can be an animation of samples, so that no other file is opened
    kept = (each for each in found if not (each[0].lower().endswith(".gif") and is_trajectory(root / each[0])))
    return FileTable.build(root, kept)


def _order(path: str) -> str:
    """Return a key that sorts paths as lists of their parts."""
    return path.replace(os.sep, "\0")


def _walk(
    folder: Path, skipped: list[Path] | None, ignored: Collection[str], extensions: tuple[str, ...]
) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of the images, in any order."""
    waiting = [os.fspath(folder)]
    try:
        while waiting:
            with os.scandir(here := waiting.pop()) as entries:
                inside = [(entry, _is_folder(entry)) for entry in entries]
            files, top = [entry.name for entry, is_folder in inside if not is_folder], here == os.fspath(folder)
            if not top and is_output(files):
                if skipped is not None:
                    skipped.append(Path(here))
                continue
            outputs = {*list_outputs(files), *(ignored if top else ())}
            for entry, is_folder in inside:
                if entry.name.startswith(".") or entry.name in outputs:
                    continue
                if is_folder and not entry.is_symlink():
                    waiting.append(entry.path)
                elif is_folder or entry.name.lower().endswith(extensions):
                    yield entry
    except OSError as error:
        raise UserError(f"cannot list the folder {here}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link in a cycle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def report_skipped(folders: Sequence[Path]) -> None:
    """Print which folders :func:`list_images` did not read, if there are any."""
    if folders:
        report(f"not read: {', '.join(map(str, sorted(folders)[:3]))} ({len(folders)} in all); {NOT_READ}")


def resolve_inside(root: Path, path: Path) -> Path:
    """Return the file that a path resolves to, if it is a file inside the folder.

    Args:
        root: the folder, without links in its path.
        path: path of an image in it.

    Raises:
        UserError: the path is a link out of the folder, to a folder or to nothing, or it is no regular file, or empty.
    """
    try:
        real = path.resolve()
        if not real.is_relative_to(root):
            raise UserError(f"it is a link that leads out of {root}, to {real}; put a copy in its place, or delete it")
        if real.is_dir():
            raise UserError("it is a link to a folder, which is not followed; put a copy in its place, or delete it")
        if not real.exists():
            raise UserError("there is no such file (any more)")
        if not real.is_file():
            raise UserError("it is not a file but a pipe or a device; delete it")
        if not real.stat().st_size:
            raise UserError("the file is empty")
    except (OSError, RuntimeError) as error:  # no permission, or a cycle of links
        raise UserError(first_line(error)) from error
    return real
