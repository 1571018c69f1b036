"""Checkpoint files when the writing process is killed, the disk is full or a bit has changed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import content
from helpers.command_line import REPOSITORY

from lightning_ddpm.models.checkpoint import (
    pending_path,
    previous_path,
    read_checkpoint,
    read_newest_checkpoint,
    write_checkpoint,
)
from lightning_ddpm.utils.errors import UserError


def flip_a_bit(path: Path, share: float) -> None:
    """Flip one bit in the middle of the weights, which torch itself does not notice."""
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * share)] ^= 1
    path.write_bytes(whole)


def test_a_written_checkpoint_is_read_back_and_the_previous_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        write_checkpoint(path, content(step))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last-previous.ckpt", "last.ckpt"]
    assert read_checkpoint(path)["global_step"] == 3
    assert read_checkpoint(previous_path(path))["global_step"] == 2
    assert read_checkpoint(path).keys() == content(3).keys()


def test_a_flipped_bit_is_detected_and_the_previous_checkpoint_is_used(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        write_checkpoint(path, content(step))
    flip_a_bit(path, 0.5)
    assert float(torch.load(path, weights_only=True)["global_step"]) == 2, "torch does not notice"
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(path)
    assert read_newest_checkpoint(path)[0]["global_step"] == 1
    path.unlink()
    assert read_newest_checkpoint(path)[1] == previous_path(path)
    flip_a_bit(previous_path(path), 0.5)
    with pytest.raises(UserError, match="is damaged"):
        read_newest_checkpoint(path)


@pytest.mark.parametrize("kills", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_a_complete_checkpoint_exists_whenever_the_writer_is_killed(tmp_path: Path, kills: int) -> None:
    path, step = tmp_path / "last.ckpt", 0
    started = time.monotonic()
    write_checkpoint(path, content(0))
    seconds = time.monotonic() - started
    for kill in range(kills):
        reader, writer = os.pipe()
        # A fork starts faster than a new process: hundreds of them start in seconds.
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                while True:
                    os.write(writer, b".")
                    step += 1
                    write_checkpoint(path, content(step))
            finally:
                os._exit(1)
        for _ in range(1 + kill % 2):  # every other time one has been written, however slow the machine is
            os.read(reader, 1)
        time.sleep(seconds * (kill % 10) / 3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        found = read_checkpoint(path)
        assert (found["state_dict"]["weight"] == found["global_step"]).all()
        assert found["global_step"] >= step
        step = found["global_step"]
    assert step > 0, "nothing was written between the kills"
    assert step - 1 in [
        read_checkpoint(each)["global_step"] for each in (pending_path(path), previous_path(path)) if each.exists()
    ]


@pytest.mark.parametrize(("renamed", "newest"), [(0, 2), (1, 3)])
def test_the_newest_complete_checkpoint_is_found_wherever_renaming_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int, newest: int
) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        write_checkpoint(path, content(step))
    child = os.fork()
    if child == 0:  # its first or second renaming ends it as SIGKILL would
        names: list[Any] = []
        rename = os.replace
        monkeypatch.setattr(
            os, "replace", lambda *pair: os._exit(0) if len(names) == renamed else (names.append(pair), rename(*pair))
        )
        write_checkpoint(path, content(3))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_newest_checkpoint(path)[0]["global_step"] == newest
    flip_a_bit(path, 0.5)
    assert read_newest_checkpoint(path)[0]["global_step"] == newest - 1


def test_a_file_size_limit_keeps_the_old_checkpoint_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, content(1))
    program = (
        "import resource, signal, sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from helpers.checkpoints import content\n"
        "from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "io = DurableCheckpointIO()\n"
        "io.save_checkpoint(content(2), sys.argv[1])\n"
        "assert io.failed\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert f"cannot write {path} at step 2" in ended.stdout
    assert "the previous one is kept" in ended.stdout
    assert read_checkpoint(path)["global_step"] == 1
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".ckpt"] == ["last.ckpt"]
