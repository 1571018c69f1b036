"""A folder is listed once for all processes of a command on a machine, and its paths take little memory."""

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_ddpm.data import ImageFolder, shared_listing
from lightning_ddpm.data.datasets import build_path_dataset, describe_file
from lightning_ddpm.data.file_table import FileNames, FileTable
from lightning_ddpm.data.folder_listing import FolderListing
from lightning_ddpm.data.image_paths import list_images, tabulate_images
from lightning_ddpm.utils.command_start import get_start, mark_start
from lightning_ddpm.utils.hashing import make_cache_key

PNG = (".png",)


def write_folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path, "PNG")
    return root


def test_a_table_has_the_paths_in_their_order_and_the_state_of_each_file(tmp_path: Path) -> None:
    root = write_folder(tmp_path, "b/1.png", "b.c/2.png", "b/d/3.png", "a.png", "é.png", os.fsdecode(b"\xff.png"))
    (root / "broken.png").symlink_to("nowhere")
    files = tabulate_images(root, root)
    assert [*files] == list_images(root) == sorted(files)
    assert [*files.describe()] == [describe_file(path) for path in files]
    size, times = files[0].stat().st_size, (files[0].stat().st_mtime_ns, files[0].stat().st_ctime_ns)
    assert next(files.describe()) == f"{root}/a.png {size} {times[0]} {times[1]}"
    assert "No such file" in [*files.describe()][4]
    assert FileNames(files)[-1].endswith("\\xff.png")
    copy = pickle.loads(pickle.dumps(files))  # noqa: S301
    assert [*copy] == [*files]
    first, rest = files.divide(2)
    assert [*(first + rest)] == [*files] == [*first, *rest]


def test_a_fingerprint_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Decoded datasets and statistics are cached under it."""
    paths = list_images(write_folder(tmp_path, "a/1.png", "b/2.png"))
    data = build_path_dataset(paths, shared_labels := torch.tensor([0, 1]), 3, 64)
    state = " ".join(describe_file(path) for path in paths)
    assert data.fingerprint == make_cache_key("\n".join(["3x64", state, *map(str, paths)]))
    chosen = data.subset([1])
    assert chosen.fingerprint == make_cache_key("\n".join(["3x64", data.fingerprint, str(paths[1])]))
    assert (chosen.labels.tolist(), [*chosen.names]) == ([int(shared_labels[1])], [str(paths[1])])


def test_a_file_takes_less_than_a_hundred_bytes_also_in_a_worker_that_is_not_forked() -> None:
    n = 20_000
    files = FileTable.build(Path("/data"), ((f"class_{i % 10}/image_{i:08d}.jpg", (i, i, i)) for i in range(n)))
    labels = torch.zeros(n, dtype=torch.long)
    data = build_path_dataset(files, labels, 3, 64).subset(range(0, n, 2))
    assert len(pickle.dumps(data)) < 100 * n


def count_scans(root: Path, queue) -> None:
    """List a folder as a rank does, and return how many folders this process has read and what it found."""
    folders = []
    sys.addaudithook(lambda event, found: folders.append(found[0]) if event == "os.scandir" else None)
    files, labels, _ = FolderListing(0.02, PNG).list_split(root)
    queue.put((sum(str(each).startswith(str(root)) for each in folders), len(files), int(labels.sum())))


@pytest.mark.parametrize("splits", [("a", "b"), ("train/a", "train/b", "test/a")])
def test_processes_of_one_command_list_a_folder_once(splits, tmp_path: Path, monkeypatch) -> None:
    root = write_folder(tmp_path, *(f"{split}/{i}.png" for split in splits for i in range(6)))
    monkeypatch.setattr(shared_listing, "SHARED_FILES", 4)
    context = multiprocessing.get_context("fork")
    with mark_start():
        queue = context.SimpleQueue()
        ranks = [context.Process(target=count_scans, args=(root, queue)) for _ in range(4)]
        for rank in ranks:
            rank.start()
        found = [queue.get() for _ in ranks]
        for rank in ranks:
            rank.join()
    assert sorted(scans > 0 for scans, _, _ in found) == [False, False, False, True]
    assert len({(n, labels) for _, n, labels in found}) == 1
    assert found[0][1] == 6 * len(splits)


def test_each_command_lists_anew_and_once_for_all_that_it_opens(tmp_path: Path, command, monkeypatch) -> None:
    root, listed = write_folder(tmp_path, *(f"{i}.png" for i in range(4))), []
    original = shared_listing.tabulate_images
    monkeypatch.setattr(shared_listing, "tabulate_images", lambda *given: listed.append(given) or original(*given))
    words = ("check-data", "--data.source", "ImageFolder", "--data.source.size", 8, "--data.root", root)
    assert "4 images can be used" in command(*words)[1]
    write_folder(root, "5.png")
    assert "5 images can be used" in command(*words)[1]
    assert len(listed) == 2
    assert get_start() is None
    with mark_start():
        for _ in range(3):
            source = ImageFolder(size=8)
            source.prepare(root)
            source.open(root, "train")
    assert len(listed) == 3


def test_a_cache_that_cannot_be_used_is_reported_and_the_folder_listed(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write_folder(tmp_path / "images", "1.png", "2.png")
    (tmp_path / "cache").touch()
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "cache"))
    with mark_start():
        assert len(shared_listing.share_listing(root, PNG).train) == 2
    assert "going on without the cache" in "".join(capsys.readouterr())
