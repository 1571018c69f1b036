"""Checkpoints: when they are written, and full disks."""

import contextlib
import math
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.callbacks import EMA, Checkpoints
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_free_space


def test_a_folder_without_free_space_is_refused(tmp_path: Path) -> None:
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
    """Limits the size of files to 5,000 bytes from the third step on, up to a given one."""

    def __init__(self, until: int) -> None:
        self.until, self.limits = until, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        full = 2 <= trainer.global_step < self.until
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000 if full else self.limits[0], self.limits[1]))


@pytest.mark.parametrize("until", [3, 99])
def test_a_full_disk_is_reported_and_training_continues_but_fails_at_the_end(
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
    out = capsys.readouterr().out
    assert f"cannot write {tmp_path / 'last.ckpt'} at step 3" in out
    assert ("at step 4" in out) == (until == 99)
    kept = [step(tmp_path / name) for name in ("last.ckpt", "last-previous.ckpt")]
    assert kept == ([4, 2] if until == 3 else [2, 1])
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


class Ballast(Callback):
    """Fills the disk with another file from the third step on."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            path = Path(trainer.default_root_dir).parent / "ballast"
            with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))


def test_existing_checkpoints_survive_a_full_disk_which_is_reported(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="the last checkpoint could not be written"):
        fit(small_disk / "run", Checkpoints(every_n_steps=1), Ballast())
    out = capsys.readouterr().out
    assert "at step 3" in out
    assert "No space left on device" in out
    names = ("last.ckpt", "last-previous.ckpt")
    assert [step(small_disk / "run" / name) for name in names] == [2, 1]
    assert [each.name for each in (small_disk / "run").iterdir() if each.name.startswith(".")] == []


def test_training_removes_the_partial_files_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.0123abcd").write_bytes(b"half a checkpoint")
    fit(tmp_path, Checkpoints(every_n_steps=3))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last-previous.ckpt", "last.ckpt"]
    assert [step(tmp_path / name) for name in ("last.ckpt", "last-previous.ckpt")] == [4, 3]


def test_training_keeps_the_checkpoint_of_a_process_that_was_killed_between_two_renamings(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.before").touch()
    (tmp_path / ".config.yaml.12345678").touch()
    trainer: Any = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, default_root_dir=str(tmp_path), callbacks=[], world_size=1
    )
    Checkpoints(every_n_steps=1).on_fit_start(trainer, tiny_model())
    assert [path.name for path in tmp_path.iterdir()] == ["last-previous.ckpt"]


def test_checkpoints_are_written_at_an_interval_of_minutes(tmp_path: Path) -> None:
    fit(tmp_path / "always", Checkpoints(every_n_minutes=1e-9))
    assert step(tmp_path / "always" / "last-previous.ckpt") == 3
    fit(tmp_path / "never", Checkpoints(every_n_minutes=1e9))
    assert [each.name for each in (tmp_path / "never").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "metric", ["val/recall_digits", "val/accuracy_digits/3", "val/accuracy", "val/psnr", "test/ssim"]
)
def test_the_highest_value_of_some_metrics_is_best(metric: str) -> None:
    assert Checkpoints(every_n_steps=1, monitor=metric).best == -math.inf
    for lowest in ("val/fd_digits", "val/wasserstein/channel_3", "val/loss"):
        assert Checkpoints(every_n_steps=1, monitor=lowest).best == math.inf


def test_checkpoints_without_an_interval_are_an_error() -> None:
    with pytest.raises(UserError, match="needs every_n_steps or every_n_minutes"):
        Checkpoints()
    with pytest.raises(UserError, match="every_n_minutes must be more than 0, got 0"):
        Checkpoints(every_n_minutes=0)
