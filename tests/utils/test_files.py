"""Files are written atomically, and folders are checked before they are needed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable, get_cache_folder, write_atomically

ENDLESS_WRITER = """
import sys
from pathlib import Path
from lightning_ddpm.utils.files import write_atomically
for count in range(10**9):
    write_atomically(Path(sys.argv[1]), lambda file: file.write(bytes([count % 256]) * 2_000_000))
    print(count, flush=True)
"""


def test_missing_folders_of_a_file_are_created(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "c.bin", lambda file: file.write(b"content"))
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"content"
    assert os.listdir(tmp_path / "a" / "b") == ["c.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_gets_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file.bin", lambda file: file.write(b"content"))
    finally:
        os.umask(before)
    assert (tmp_path / "file.bin").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the new one")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept.bin"]


def test_a_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    content = path.read_bytes()
    assert len(content) == 2_000_000
    assert len(set(content)) == 1


def test_check_writable_creates_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "run")
    assert os.listdir(tmp_path / "new" / "run") == []


def test_check_writable_keeps_existing_files(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"precious")
    check_writable(tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == b"precious"


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write in .*file/run.*choose another folder"):
        check_writable(tmp_path / "file" / "run")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write in"):
        check_writable(tmp_path)
    tmp_path.chmod(0o700)


def test_a_read_only_file_system_is_refused() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(UserError, match="cannot write in /proc/self"):
        check_writable(Path("/proc/self/run"))


def test_the_environment_sets_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "mine"))
    assert get_cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LIGHTNING_DDPM_CACHE")
    assert get_cache_folder() == tmp_path / "xdg" / "lightning_ddpm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert get_cache_folder() == tmp_path / "home" / ".cache" / "lightning_ddpm"
