"""Finished images: folders of image files, and npz files as ADM writes samples."""

import io
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_ddpm.data.datasets import ImageDataset, MemoryDataset, build_path_dataset
from lightning_ddpm.data.image_io import check_bits, open_image
from lightning_ddpm.data.image_paths import NOT_READ, list_images, report_skipped, resolve_inside
from lightning_ddpm.data.splits import list_split_folders
from lightning_ddpm.data.validation import format_faults
from lightning_ddpm.utils.console import show_progress
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import write_atomically
from lightning_ddpm.utils.hashing import hash_bytes, make_cache_key
from lightning_ddpm.utils.npz import read_npz

MAX_FILE_BYTES = 2**30
"""Largest file of an image: more than Pillow's limit of pixels takes without compression."""


def open_sample_folder(folder: Path) -> ImageDataset:
    """Open all images of a folder and its subfolders, sorted by path; none is resized.

    GIFs are skipped, because they show the process of sampling. The fingerprint depends on the content of the files,
    not on their names and dates.

    Raises:
        UserError: there is no folder or no image, it holds several splits, an image cannot be read, or they have
            several sizes.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name one that holds images")
    splits = [each for folders in list_split_folders(folder).values() for each in folders]
    if len(splits) > 1:
        names = ", ".join(each.name for each in splits)
        raise UserError(f"{folder} holds the splits {names}; name one of them, such as {splits[0]}")
    skipped: list[Path] = []
    paths = [path for path in list_images(folder, skipped) if path.suffix.lower() != ".gif"]
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}), nor do its subfolders; {NOT_READ}")
    report_skipped(skipped)
    within = partial(resolve_inside, folder.resolve())
    content, bad, grayscale = b"", [], True
    sizes: dict[tuple[int, int], Path] = {}
    for path in show_progress(((1, path) for path in paths), len(paths), f"checking {folder}", len(paths) > 5000):
        try:
            if within(path).stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"the file is larger than {MAX_FILE_BYTES:,} bytes")
            raw = within(path).read_bytes()
            with open_image(io.BytesIO(raw)) as image:
                check_bits(image)
                sizes.setdefault(image.size, path)
                grayscale = grayscale and Image.getmodebase(image.mode) == "L"
            content += bytes.fromhex(hash_bytes(raw))
        except (UserError, OSError) as error:
            bad.append(f"{path}: {first_line(error)}")
    if bad:
        raise UserError(f"{len(bad)} of the {len(paths)} images in {folder} cannot be read:\n{format_faults(bad)}")
    if len(sizes) > 1:
        some = ", ".join(f"{path} of {width}x{height}" for (width, height), path in list(sizes.items())[:2])
        raise UserError(
            f"images are evaluated without resizing and must be of one size; {folder} has {some}; resize them"
        )
    ((width, height),) = sizes
    data = build_path_dataset(paths, torch.full((len(paths),), -1), 1 if grayscale else 3, (height, width), within)
    data.fingerprint = make_cache_key(content)
    return data


def open_npz_samples(path: Path) -> ImageDataset | None:
    """Read the images of an npz file, ``arr_0`` (n, h, w, c) uint8 as ADM writes samples; ``None`` if it has none.

    Raises:
        UserError: there is no such file, it is damaged, or ``arr_0`` is not an array of images.
    """
    try:
        with path.open("rb") as file:
            images = read_npz(file, str(path), ("arr_0",)).get("arr_0")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if images is None:
        return None
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise UserError(
            f"{path}: arr_0 is {images.dtype} of shape {shape}; expected uint8 of (n, height, width, 1 or 3), as ADM's"
        )
    return MemoryDataset(torch.from_numpy(images).permute(0, 3, 1, 2), torch.full((len(images),), -1))


def write_npz_samples(path: Path, images: Iterable[np.ndarray], n: int, shape: tuple[int, int, int]) -> None:
    """Write images as ADM does, ``arr_0`` (n, h, w, c) in their own type; one at a time is in memory.

    Args:
        path: the file.
        images: n arrays (c, h, w) of one type.
        n: number of images.
        shape: (c, h, w).
    """
    channels, height, width = shape

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for index, image in enumerate(images):
                if not index:
                    header = {"descr": image.dtype.str, "fortran_order": False, "shape": (n, height, width, channels)}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(np.moveaxis(image, 0, 2)).tobytes())

    write_atomically(path, write)
