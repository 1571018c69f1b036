"""The folder that ``sample`` writes: numbered images of one set, and a manifest that identifies the set."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_ddpm.data.numbered_images import NUMBERED, is_whole
from lightning_ddpm.data.sharding import split_ranges
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_output_file, check_writable, remove_leftovers, write_json
from lightning_ddpm.utils.run_files import MANIFEST, OVERVIEWS
from lightning_ddpm.utils.text_files import read_json

UNFINISHED = "unfinished"
"""Key of the manifest of a set that cannot be continued, until it is complete."""


def check_folder(folder: Path, *files: str) -> None:
    """Create the folder of a set, and check that the set can be written there.

    Raises:
        UserError: the folder, the manifest or one of these files in it cannot be written, or it holds other images,
            which the manifest would make output.
    """
    check_writable(folder)
    others = [
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in (*IMG_EXTENSIONS, ".npy")
        and not fnmatch(path.name, NUMBERED)
        and path.name not in OVERVIEWS
    ]
    if others and not (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds images already, such as {min(others)}; empty it or choose another folder")
    for name in (MANIFEST, *files):
        check_output_file(folder / name, "--out", [Path(name).suffix])


def check_no_larger_set(folder: Path, n: int) -> None:
    """Raise UserError if the folder holds images beyond the first n, which would be taken for part of the set."""
    others = [path.name for path in folder.glob(NUMBERED) if int(path.stem) >= n]
    if others:
        raise UserError(f"{folder} holds {min(others)} and more of a larger set; empty it or choose another folder")


def check_same_set(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise UserError if the folder holds images that are not known to belong to the set of this manifest."""
    existing = _read_manifest(folder)
    if existing == manifest or not any(folder.glob(NUMBERED)):
        return
    if existing is None:
        what = f"holds images, and no {MANIFEST} identifies their set"
    else:
        key = next(each for each in (*manifest, *existing) if existing.get(each) != manifest.get(each))
        what = f"holds images of another set: their {key} is {existing.get(key)}, requested is {manifest.get(key)}"
    raise UserError(f"{folder} {what}; empty it or choose another folder")


def read_batch_size(folder: Path) -> int | None:
    """Return the batch size of the set that the folder holds a part of, ``None`` if there is none."""
    size = (_read_manifest(folder) or {}).get("batch_size")
    return size if isinstance(size, int) and size > 0 and any(folder.glob(NUMBERED)) else None


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the folder's manifest; ``None`` where it is missing or damaged."""
    try:
        manifest = read_json(folder / MANIFEST)
    except UserError:
        return None
    return manifest if isinstance(manifest, dict) else None


def find_complete_batches(
    folder: Path, n: int, batch_size: int, shape: tuple[int, int, int], values: ValueRange = UINT8
) -> tuple[set[int], int]:
    """Return the first index of each batch whose images all exist, and how many of the images are damaged.

    A failure of the machine damages images that were not yet on the disk.

    Args:
        folder: the folder.
        n: number of images of the set.
        batch_size: number of images in a batch.
        shape: (channels, height, width) of the images.
        values: type of their values.
    """
    found = {int(path.stem): is_whole(path, shape, values) for path in folder.glob(NUMBERED)}
    whole = {index for index, is_whole in found.items() if is_whole}
    batches = split_ranges(n, 0, batch_size, Ranks())
    return {start for _, start, stop in batches if whole.issuperset(range(start, stop))}, len(found) - len(whole)


def is_unfinished(folder: Path) -> bool:
    """Return whether the folder's set was begun as :data:`UNFINISHED`, and not completed."""
    return UNFINISHED in (_read_manifest(folder) or {})


def delete_images(folder: Path) -> None:
    """Delete the images of an interrupted set that is made again from its start."""
    for path in folder.glob(NUMBERED):
        path.unlink()


def start_set(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, and delete the temporary files of an interrupted run."""
    remove_leftovers(folder)
    write_json(folder / MANIFEST, manifest)
