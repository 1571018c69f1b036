"""Tests of the restart with memory in huge pages."""

import os
import subprocess
import sys

import pytest

from lightning_ddpm.utils import huge_pages

THP = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.fixture
def system(tmp_path):
    """The root of a file system of a machine with huge pages and without a GPU."""
    (tmp_path / THP).parent.mkdir(parents=True)
    (tmp_path / THP).write_text("always [madvise] never\n")
    (tmp_path / "dev").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def _glibc(monkeypatch):
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))


def test_a_machine_with_huge_pages_and_no_gpu_has_a_use(system):
    assert huge_pages.has_use({}, system)


def test_what_the_user_has_set_stays(system):
    assert not huge_pages.has_use({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, system)


def test_beside_a_gpu_nothing_is_done(system):
    (system / "dev" / "nvidiactl").touch()
    assert not huge_pages.has_use({}, system)


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_a_kernel_without_huge_pages_has_no_use(system, setting):
    (system / THP).unlink() if setting is None else (system / THP).write_text(setting)
    assert not huge_pages.has_use({}, system)


@pytest.mark.parametrize("found", [("glibc", "2.34"), ("", ""), ("libc", "7"), ("glibc", "2.x")])
def test_another_or_an_older_c_library_has_no_use(system, monkeypatch, found):
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: found)
    assert not huge_pages.has_use({}, system)


def test_a_process_under_a_debugger_is_not_restarted(monkeypatch):
    started = []
    monkeypatch.setattr(huge_pages, "has_use", lambda environment: True)
    monkeypatch.setattr(huge_pages.os, "execve", lambda *given: started.append(given))
    before = sys.gettrace()
    try:
        sys.settrace(lambda *given: None)
        huge_pages.restart_with_huge_pages()
        assert started == []
        sys.settrace(None)
        huge_pages.restart_with_huge_pages()
        assert len(started) == 1
    finally:
        sys.settrace(before)


@pytest.mark.skipif(not huge_pages.has_use({}), reason="a restart has no use on this machine")
def test_the_program_is_the_same_process_with_other_memory(tmp_path):
    # written by Python at every start of the process, before the program
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nprint(os.getpid(), os.environ.get('GLIBC_TUNABLES', 'unset'), flush=True)\n"
    )
    environment = {name: each for name, each in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [environment.get("PYTHONPATH")])])
    words = [
        sys.executable,
        "-X",
        "utf8",
        "-m",
        "lightning_ddpm",
        "sample",
        "--ckpt",
        "none.ckpt",
        "--out",
        str(tmp_path / "out"),
    ]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    first, second = ran.stdout.splitlines()
    assert first.split() == [second.split()[0], "unset"]
    assert second.split()[1] == huge_pages.format_tunables()
    assert ran.returncode == 2
    assert "none.ckpt" in ran.stderr
