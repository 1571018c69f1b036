"""Data that several processes prepare in one folder, and processes that are killed meanwhile."""

import os
import shutil
import signal
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from lightning_ddpm.data import LSUN, MNIST, CelebA, ImageFolder, decode_cache, sources
from lightning_ddpm.data.lmdb_files import META
from lightning_ddpm.data.preparation import prepare_aside
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.locks import PREPARING, wait_for_folder

lmdb = pytest.importorskip("lmdb")


class Child:
    """A forked process, which starts faster than a new one, and the lines that it prints."""

    def __init__(self, work: Callable[[], object]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.dup2(writer, 1)
                sys.stdout = os.fdopen(1, "w", buffering=1)
                print(work())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        self.lines = os.fdopen(reader)

    def wait(self) -> tuple[int, list[str]]:
        """Return the exit status and the lines that were not read yet."""
        lines = self.lines.read().splitlines()
        self.lines.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), lines


def prepare(archives: Path, root: Path, pause: float) -> str:
    """Prepare LSUN by a download that extracts each file in two halves with a pause between them, and open it."""

    def download(url: str, place: str, remove_finished: bool) -> None:
        with (archives / "log").open("a") as log:
            log.write(url + "\n")
        with zipfile.ZipFile(archives / url.rpartition("/")[2]) as archive:
            for name in archive.namelist():
                path, content = Path(place, name), archive.read(name)
                path.parent.mkdir(exist_ok=True)
                with path.open("wb", buffering=0) as file:
                    file.write(content[: len(content) // 2])
                    print("half")
                    time.sleep(pause)
                    file.write(content[len(content) // 2 :])

    sources.download_and_extract_archive = download
    source = LSUN("church_outdoor", size=8)
    source.prepare(root)
    return f"{len(source.open(root, 'train'))} {len(source.open(root, 'test'))}"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Write the two archives of an LSUN category, with 3 and 2 images."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for split, n in (("train", 3), ("val", 2)):
        name = f"church_outdoor_{split}_lmdb"
        write_lmdb(folder / name, n)
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.write(folder / name / "data.mdb", f"{name}/data.mdb")
    return folder


def write_image(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (12, 12), (1, 2, 3)).save(path)


def write_lmdb(folder: Path, n: int) -> None:
    """Write an LMDB of n images."""
    folder.mkdir(parents=True)
    write_image(folder / "image.png")
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for i in range(n):
            transaction.put(f"{i:08d}".encode(), (folder / "image.png").read_bytes())


def test_of_two_processes_one_downloads_and_the_other_waits(tmp_path: Path, archives: Path) -> None:
    root = tmp_path / "data"
    first = Child(partial(prepare, archives, root, 0.5))
    assert first.lines.readline() == "half\n"
    second = Child(partial(prepare, archives, root, 0))
    assert second.lines.readline() == (
        f"waiting for another run (process {first.pid} on {socket.gethostname()}), which prepares "
        f"LSUN church_outdoor_train_lmdb in {root}\n"
    )
    for status, lines in (first.wait(), second.wait()):
        assert (status, lines[-1]) == (0, "3 2")
    assert len((archives / "log").read_text().splitlines()) == 2, "each archive was downloaded once"
    assert sorted(os.listdir(root)) == ["church_outdoor_train_lmdb", "church_outdoor_val_lmdb"]


def test_a_killed_process_leaves_nothing_that_passes_for_whole(tmp_path: Path, archives: Path) -> None:
    root = tmp_path / "data"
    killed = Child(partial(prepare, archives, root, 60))
    assert killed.lines.readline() == "half\n"
    waiting = Child(partial(prepare, archives, root, 0))
    assert waiting.lines.readline().startswith(f"waiting for another run (process {killed.pid} on ")
    assert not [each for each in os.listdir(root) if not each.startswith(".")], "nothing is at its place yet"
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait()[0] == -signal.SIGKILL
    status, lines = waiting.wait()
    assert (status, lines[-1]) == (0, "3 2")
    assert sorted(os.listdir(root)) == ["church_outdoor_train_lmdb", "church_outdoor_val_lmdb"], "leftovers are gone"


def test_data_that_are_there_need_no_writable_folder(tmp_path: Path) -> None:
    prepare_aside(tmp_path / "nowhere", "Set", lambda: True, pytest.fail)
    assert not (tmp_path / "nowhere").exists()


def test_a_download_that_fails_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")

    def download(place: Path) -> None:
        (place / "half").write_text("half")
        raise zipfile.BadZipFile("File is not a zip file")

    with pytest.raises(UserError, match=r"Set is not in .* \(File is not a zip file\); put it there"):
        prepare_aside(tmp_path, "Set", lambda: False, download)
    assert os.listdir(tmp_path) == ["mine"]


def test_archives_that_are_there_are_used_and_files_are_added_to_existing_folders(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "archive.gz").write_text("archive")
    (tmp_path / "set" / "old").write_text("old")

    def download(place: Path) -> None:
        assert (place / "set" / "archive.gz").read_text() == "archive"
        (place / "set" / "new").write_text("new")
        (place / "other" / "below").mkdir(parents=True)

    prepare_aside(tmp_path, "Set", (tmp_path / "set" / "new").exists, download, ("set/*.gz",))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive.gz", "below", "new", "old", "other", "set"]
    assert not (tmp_path / "set" / "archive.gz").is_symlink()


def test_mnist_is_downloaded_again_by_the_others_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed between two files has left three of four; all of them come from torchvision."""

    def download(dataset: torchvision.datasets.MNIST) -> None:
        raw = Path(dataset.raw_folder)
        raw.mkdir(parents=True, exist_ok=True)
        for part in ("train", "t10k"):
            for kind, shape in (("images-idx3", (4, 28, 28)), ("labels-idx1", (4,))):
                header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
                (raw / f"{part}-{kind}-ubyte").write_bytes(header + bytes(int(np.prod(shape))))

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    MNIST().prepare(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    MNIST().prepare(tmp_path)
    assert len(MNIST().open(tmp_path, "test")) == 4
    assert os.listdir(tmp_path) == ["MNIST"]


def test_celeba_without_all_of_its_images_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    names = ["000001.png", "000002.png", "000003.png"]

    def build(root: Path, split: str = "train", download: bool = False) -> object:
        folder = Path(root) / "celeba" / "img_align_celeba"
        if download:
            calls.append(root)
            folder.mkdir(parents=True)
            for name in names:
                Image.new("RGB", (178, 218)).save(folder / name)
        if not folder.is_dir():
            raise RuntimeError("Dataset not found")
        return type("Listed", (), {"filename": names})

    build.base_folder = "celeba"  # type: ignore[attr-defined]
    monkeypatch.setattr(torchvision.datasets, "CelebA", build)
    CelebA().prepare(tmp_path)
    CelebA().prepare(tmp_path)
    assert len(calls) == 1
    (tmp_path / "celeba" / "img_align_celeba" / names[1]).unlink()
    CelebA().prepare(tmp_path)
    assert len(calls) == 2
    assert sorted(os.listdir(tmp_path / "celeba" / "img_align_celeba")) == names


def set_entries(path: Path, change: int) -> None:
    """Change the number of entries of the main database in both meta pages, at byte 32 of its record."""
    whole = bytearray(path.read_bytes())
    page = META.unpack_from(whole)[4]
    for start in (0, page):
        place = start + 88 + 32
        whole[place : place + 8] = struct.pack("<Q", struct.unpack("<Q", whole[place : place + 8])[0] + change)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: set_entries(path, 4), r"church_outdoor_val_lmdb has 2 images and declares 6; delete this folder"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4096]), r"declares .*; delete this folder"),
        (lambda path: path.rename(path.with_name("lock.mdb")), r"or damaged.*; delete this folder"),
        (lambda path: path.write_bytes(b""), r"or damaged.*; delete this folder"),
        (lambda path: write_lmdb(path.parent / "empty", 0) or shutil.move(path.parent / "empty" / "data.mdb", path),
         r"has 0 images and declares 0; delete this folder"),
    ],
    ids=["fewer entries", "cut off", "lock file alone", "empty file", "no images"],
)  # fmt: skip
def test_an_lmdb_that_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write_lmdb(tmp_path / "church_outdoor_train_lmdb", 3)
    write_lmdb(tmp_path / "church_outdoor_val_lmdb", 2)
    damage(tmp_path / "church_outdoor_val_lmdb" / "data.mdb")
    with pytest.raises(UserError, match=message):
        LSUN("church_outdoor", size=8).prepare(tmp_path)


def decode(images: Path, cache: Path) -> int:
    """Decode images into the cache, and print that it is done; return a number that depends on them."""
    read = decode_cache.read_all
    decode_cache.read_all = lambda *arguments: (print("decodes"), read(*arguments))[1]
    data = ImageFolder(size=8, holdout=0.5).open(images, "train")
    return int(decode_cache.decode_to_file(data, cache, "set").__getitems__([0])[0].sum())  # type: ignore[arg-type]


def test_one_of_two_processes_decodes_into_the_shared_folder(tmp_path: Path) -> None:
    for i in range(2):
        write_image(tmp_path / "images" / f"{i}.png")
    (tmp_path / "cache").mkdir()
    with wait_for_folder(tmp_path / "cache", "another set") as is_locked:
        assert is_locked
        children = [Child(partial(decode, tmp_path / "images", tmp_path / "cache")) for _ in range(2)]
        for each in children:
            assert each.lines.readline().startswith(f"waiting for another run (process {os.getpid()} on ")
    ended = [each.wait() for each in children]
    assert [status for status, _ in ended] == [0, 0]
    assert sorted(lines for _, lines in ended) == [[str(6 * 64)], ["decodes", str(6 * 64)]]
    (cached,) = os.listdir(tmp_path / "cache")
    assert cached.endswith(".npy")


def test_the_lock_outlives_no_process_and_leaves_no_file(tmp_path: Path) -> None:
    with wait_for_folder(tmp_path, "a set") as is_locked:
        assert is_locked
        assert (tmp_path / PREPARING).is_file()
    assert os.listdir(tmp_path) == []
    (tmp_path / PREPARING).write_text("process 1 on a machine that has crashed")
    begun = time.monotonic()
    with wait_for_folder(tmp_path, "a set"):
        assert time.monotonic() - begun < 5, "nobody holds a file that is only there"
