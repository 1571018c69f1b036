"""The cache is optional: a run goes on without it, and a damaged file in it is computed again."""

import os
from pathlib import Path

import pytest
from helpers.metrics import CPU, digits, in_memory, show_nothing
from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm.metrics import FrechetDistance, ModuleFeatures
from lightning_ddpm.utils import cache
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.files import remove_leftovers, write_atomically


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, nothing has been reported."""
    monkeypatch.setattr(cache, "_REPORTED", set())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_cached(tmp_path / "a" / "file", b"content")
    assert read_cached(tmp_path / "a" / "file") == b"content"
    assert read_cached(tmp_path / "none") is None
    write_cached(tmp_path / "empty", b"")
    assert read_cached(tmp_path / "empty") == b""


def test_any_flipped_bit_and_any_cut_makes_a_file_count_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    write_cached(path, b"content")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_cached(path) is None
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_cached(path) is None
    assert capsys.readouterr().out.count(f"computed again: {path} is damaged") == 9 * len(whole)


def compute_reference(capsys: pytest.CaptureFixture[str]) -> tuple[float, str]:
    """Return a Fréchet distance to a cached reference, and what was printed."""
    import torch

    distance = FrechetDistance(ModuleFeatures(torch.nn.Flatten(), 64, "pixels"), CPU)
    distance.set_reference(in_memory(digits(0, 100)), Ranks(), show_nothing)
    distance.update(digits(100, 200))
    return distance.compute(), capsys.readouterr().out


@pytest.mark.parametrize("block", ["file", "file/below", "file/far/below"])
def test_a_cache_that_cannot_be_used_is_reported_once_and_the_work_goes_on(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "good"))
    expected, printed = compute_reference(capsys)
    assert printed == ""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path / block)
    first, printed = compute_reference(capsys)
    assert first == expected
    assert printed.startswith(f"going on without the cache {tmp_path / block} (")
    assert printed.count("\n") == 1
    again, printed = compute_reference(capsys)
    assert (again, printed) == (expected, "")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_reference_with_a_flipped_bit_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path))
    expected, _ = compute_reference(capsys)
    (path,) = (tmp_path / "reference").iterdir()
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 300):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_cached(path) is None
    path.write_bytes(damaged)
    assert compute_reference(capsys)[0] == expected
    assert path.read_bytes() == whole


def test_without_a_home_and_an_entry_in_the_list_of_users_there_is_no_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LIGHTNING_DDPM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as Python's where neither is there
    assert find_cached("file") is find_cached("file") is None
    write_cached(None, b"content")
    assert read_cached(None) is None
    assert capsys.readouterr().out.count("going on without the cache") == 1


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_the_first_rank_alone_reports(
    rank: int, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    write_cached(tmp_path / "file" / "below" / "name", b"")
    assert capsys.readouterr().out.count("going on without the cache") == lines


def test_leftovers_are_removed_unless_a_live_process_writes_them(tmp_path: Path) -> None:
    for name in (".last.ckpt.0123abcd", ".a b.npz.ffffffff"):
        (tmp_path / name).write_bytes(b"half")
    kept = [".last.ckpt.before", ".hidden", "file.0123abcd", ".git.0123abcdef"]
    for name in kept:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "file", lambda file: (remove_leftovers(tmp_path), file.write(b"whole")))
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "file"])
    assert (tmp_path / "file").read_bytes() == b"whole"
