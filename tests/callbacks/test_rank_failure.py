"""StopAllRanks: what happens to the other ranks when one fails or loses the connection."""

import time
from pathlib import Path

import pytest
import torch
from helpers.command_line import REPOSITORY, ddpm, tiny_digits, write_yaml
from helpers.tiny import quiet_trainer, tiny_model

from lightning_ddpm.callbacks import StopAllRanks


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_rank_ends_both_with_its_traceback(tmp_path: Path, rank: int) -> None:
    config = tiny_digits(tmp_path / "run")
    config["trainer"]["max_steps"] = 100_000
    config["trainer"]["callbacks"] = [
        {"class_path": "helpers.run_spies.Fails", "init_args": {"step": 3, "rank": rank, "folder": str(tmp_path)}}
    ]
    options = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    # returns when both ranks have ended, because both hold the pipes
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *options, PYTHONPATH=path)
    seconds = time.time() - float((tmp_path / "failed-at").read_text())
    assert ended.returncode != 0
    assert "ArithmeticError: on this rank alone" in ended.stderr
    assert seconds < 60


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.distributed.DistBackendError("watchdog"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SystemExit(0), False),
    ],
)
def test_a_lost_connection_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, lost: bool
) -> None:
    """The third is gloo's error for a timeout between collectives, which does not name gloo."""
    StopAllRanks().on_exception(quiet_trainer(tmp_path), tiny_model(), error)
    assert ("rank 0 lost the connection to another rank after step 0" in capsys.readouterr().out) is lost
