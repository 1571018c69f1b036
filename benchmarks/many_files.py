"""Measures the start on a folder of very many files: processor time, memory, stats, and what a worker is sent.

The files are hard links to one small image, in a thousand subfolders of a temporary folder; each number of files is
measured in a process of its own.
"""

import argparse
import io
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import measure_in_subprocess, peak_megabytes, write_result
from lightning_ddpm.data import ImageFolder, file_table, image_paths
from lightning_ddpm.data.datasets import build_path_dataset
from lightning_ddpm.data.folder_listing import FolderListing

CLASSES, LINKS = 1000, 50_000
"""Number of subfolders, and of links to a file: file systems allow some 65,000."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of files")
    parser.add_argument("--read", type=int, default=100_000, help="largest number of files that are read and checked")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the result")


def run(options: argparse.Namespace) -> None:
    """Write the result, a row for each quantity."""
    values: dict[str, list[Any]] = {}
    for n in sorted(options.files):
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder) / "images", n)
            cache = {"LIGHTNING_DDPM_CACHE": str(Path(folder) / "cache")}
            found = measure_in_subprocess("many_files", cache, root=folder, n=n, read=n <= options.read)
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    columns = [f"{n:,}" for n in sorted(options.files)]
    write_result(options.out, "many_files", {"unit": "files", "columns": columns}, values)


def write_files(root: Path, n: int) -> None:
    """Link n names to a gray image of 8x8 pixels, evenly in the subfolders."""
    content = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(content, "PNG")
    folders = [root / f"class_{label:04d}" for label in range(min(CLASSES, n))]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(n):
        path = folders[index % len(folders)] / f"image_{index:09d}.png"
        if index % LINKS == 0:
            path.write_bytes(content.getvalue())
            original = path
        else:
            os.link(original, path)


def measure(root: str, n: int, read: bool) -> dict[str, float | None]:
    """Return what it takes to open n files in a folder, and to read them all once."""
    stats, original = 0, file_table.get_stat

    def count(file: Any) -> Any:
        nonlocal stats
        stats += 1
        return original(file)

    file_table.get_stat = image_paths.get_stat = count
    before, started = peak_megabytes(of_the_process=True), time.process_time()
    files, labels, parts = FolderListing(0.02).list_split(Path(root) / "images")
    listed = time.process_time()
    data = build_path_dataset(files, labels, 1, 8).subset(parts["train"])
    opened, peak = time.process_time(), peak_megabytes(of_the_process=True)
    assert len(labels) == n
    counted = stats / n
    sent = pickle.dumps(data)
    received = time.process_time()
    pickle.loads(sent)  # noqa: S301  # as a worker that is spawned does
    unpickled = time.process_time()
    found: dict[str, float | None] = {
        "list, stat, classes and splits, CPU s": listed - started,
        "dataset of the training images with its fingerprint, CPU s": opened - listed,
        "stats of each file": counted,
        "peak memory beyond the imports, bytes a file": (peak - before) * 1e6 / n,
        "sent to a worker that is not forked, bytes an image": len(sent) / len(data),
        "received there, CPU s": unpickled - received,
        "every image read and checked once, CPU s": None,
    }
    if read:
        started = time.process_time()
        ImageFolder(channels=1, size=8).prepare(Path(root) / "images")
        found["every image read and checked once, CPU s"] = time.process_time() - started
    return found
