"""Checkpoints while the process is killed, the disk is full, or what is in them has changed."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import content
from helpers.command_line import REPOSITORY
from helpers.tiny import quiet_trainer, tiny_model
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks import EMA, Checkpoints
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.checkpoint import (
    pending_path,
    previous_path,
    read_checkpoint,
    read_newest_checkpoint,
    write_checkpoint,
)
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_free_space


def flip_a_bit(path: Path, share: float) -> None:
    """Change one bit in the middle of the weights, which torch itself does not notice."""
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * share)] ^= 1
    path.write_bytes(whole)


def test_what_was_written_is_read_and_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        write_checkpoint(path, content(step))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last-previous.ckpt", "last.ckpt"]
    assert read_checkpoint(path)["global_step"] == 3
    assert read_checkpoint(previous_path(path))["global_step"] == 2
    assert read_checkpoint(path).keys() == content(3).keys()


def test_a_changed_bit_is_noticed_and_the_one_before_taken(tmp_path: Path) -> None:
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
def test_there_is_a_whole_checkpoint_whenever_the_writer_is_killed(tmp_path: Path, kills: int) -> None:
    path, step = tmp_path / "last.ckpt", 0
    started = time.monotonic()
    write_checkpoint(path, content(0))
    seconds = time.monotonic() - started
    for kill in range(kills):
        reader, writer = os.pipe()
        # A fork, not a new process: hundreds of them start in seconds.
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
        for _ in range(1 + kill % 2):  # every other time one has been written, however busy the machine is
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
def test_the_newest_whole_one_is_found_wherever_the_renaming_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int, newest: int
) -> None:
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        write_checkpoint(path, content(step))
    child = os.fork()
    if child == 0:  # whose first or second renaming ends it as SIGKILL would
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


def test_a_file_size_limit_leaves_the_old_checkpoint_and_is_said(tmp_path: Path) -> None:
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


def test_a_folder_without_room_is_refused(tmp_path: Path) -> None:
    check_free_space(tmp_path, 10_000, 30_000)
    with pytest.raises(UserError, match=r"the checkpoints take .* MB and .* has .* MB left; make room"):
        check_free_space(tmp_path, 10_000, 10**18)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written in .* \(File too large\)"):
            check_free_space(tmp_path, 10_000, 30_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def step(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def fit(folder: Path, *callbacks: Callback, **arguments: Any) -> None:
    trainer = quiet_trainer(
        folder,
        callbacks=[EMA(0.5), *callbacks],
        enable_checkpointing=True,
        plugins=[DurableCheckpointIO()],
        **({"max_steps": 4} | arguments),
    )
    trainer.fit(tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16))


class Full(Callback):
    """No file can grow beyond a few bytes from the third step on, up to a later one."""

    def __init__(self, until: int) -> None:
        self.until, self.limits = until, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        full = 2 <= trainer.global_step < self.until
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000 if full else self.limits[0], self.limits[1]))


@pytest.mark.parametrize("until", [3, 99])
def test_a_disk_that_fills_up_is_said_and_training_goes_on_but_does_not_end_well(
    tmp_path: Path, until: int, capsys: pytest.CaptureFixture[str]
) -> None:
    full, old = Full(until), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if until == 3:
            fit(tmp_path, Checkpoints(every_n_steps=1), full)
        else:
            with pytest.raises(UserError, match="the last checkpoint could not be written"):
                fit(tmp_path, Checkpoints(every_n_steps=1), full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, full.limits)
        signal.signal(signal.SIGXFSZ, old)
    said = capsys.readouterr().out
    assert f"cannot write {tmp_path / 'last.ckpt'} at step 3" in said
    assert ("at step 4" in said) == (until == 99)
    kept = [step(tmp_path / name) for name in ("last.ckpt", "last-previous.ckpt")]
    assert kept == ([4, 2] if until == 3 else [2, 1])
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


class Ballast(Callback):
    """Somebody else's file takes all the room that is left, from the third step on."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            path = Path(trainer.default_root_dir).parent / "ballast"
            with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))


def test_a_full_disk_keeps_the_checkpoints_that_are_there_and_is_said(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="the last checkpoint could not be written"):
        fit(small_disk / "run", Checkpoints(every_n_steps=1), Ballast())
    said = capsys.readouterr().out
    assert "at step 3" in said
    assert "No space left on device" in said
    names = ("last.ckpt", "last-previous.ckpt")
    assert [step(small_disk / "run" / name) for name in names] == [2, 1]
    assert [each.name for each in (small_disk / "run").iterdir() if each.name.startswith(".")] == []


def test_training_starts_in_a_folder_with_room_only_and_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.abcdefgh").write_bytes(b"half a checkpoint")
    fit(tmp_path, Checkpoints(every_n_steps=3))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last-previous.ckpt", "last.ckpt"]
    assert [step(tmp_path / name) for name in ("last.ckpt", "last-previous.ckpt")] == [4, 3]


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    fit(tmp_path / "always", Checkpoints(every_n_minutes=1e-9))
    assert step(tmp_path / "always" / "last-previous.ckpt") == 3
    fit(tmp_path / "never", Checkpoints(every_n_minutes=1e9))
    assert [each.name for each in (tmp_path / "never").iterdir()] == ["last.ckpt"]


def test_checkpoints_without_an_interval_are_an_error() -> None:
    with pytest.raises(UserError, match="needs every_n_steps or every_n_minutes"):
        Checkpoints()
    with pytest.raises(UserError, match="every_n_minutes must be more than 0, got 0"):
        Checkpoints(every_n_minutes=0)
