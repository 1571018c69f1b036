"""The scripts for SLURM and for several machines, with stand-ins for srun, scontrol and torchrun."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.command_line import REPOSITORY

STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$TOLD"
if [ "$(basename "$0")" = srun ]; then
    trap 'echo saved >> "$TOLD"; exit 0' USR1
    for _ in $(seq "$TENTHS"); do sleep 0.1; done
    exit "$STATUS"
fi
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose scheduler writes down what it is told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "scontrol", "torchrun"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    told = {"TOLD": str(tmp_path / "told"), "TENTHS": "1", "STATUS": "0", "SLURM_JOB_ID": "77"}
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **told}


def start(machine: dict[str, str], script: str, *words: object, **variables: str) -> subprocess.Popen[str]:
    line = ["bash", f"docs/{script}", *map(str, words)]
    return subprocess.Popen(line, cwd=REPOSITORY, env={**machine, **variables}, text=True)


def told(machine: dict[str, str]) -> list[str]:
    path = Path(machine["TOLD"])
    return path.read_text().splitlines() if path.exists() else []


def test_a_job_whose_time_is_up_saves_and_is_queued_again(machine: dict[str, str], tmp_path: Path) -> None:
    job = start(machine, "train.sbatch", "c.yaml", tmp_path / "run", TENTHS="600")
    while not told(machine):
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    step, saved, again = told(machine)
    assert step.startswith("srun --kill-on-bad-exit=1 python -m lightning_ddpm fit --config c.yaml")
    assert f"--trainer.default_root_dir {tmp_path / 'run'}" in step
    assert (saved, again) == ("saved", "scontrol requeue 77")
    assert "--ckpt_path" not in step


@pytest.mark.parametrize("status", ["0", "3"])
def test_a_job_that_ends_by_itself_is_not_queued_again(machine: dict[str, str], tmp_path: Path, status: str) -> None:
    assert start(machine, "train.sbatch", "c.yaml", tmp_path, "--data.num_workers", 4, STATUS=status).wait(30) == int(
        status
    )
    (step,) = told(machine)
    assert step.endswith("--data.num_workers 4")


@pytest.mark.parametrize("there", ["last.ckpt", "last-previous.ckpt", None])
def test_both_scripts_go_on_where_there_is_a_checkpoint(
    machine: dict[str, str], tmp_path: Path, there: str | None
) -> None:
    if there:
        (tmp_path / there).touch()
    variables = {"NODES": "2", "GPUS": "8", "HOST": "first"}
    for script in ("train.sbatch", "train_nodes.sh"):
        assert start(machine, script, "c.yaml", tmp_path, **variables).wait(30) == 0
    for line in told(machine):
        assert ("--ckpt_path last" in line) == (there is not None)
    assert "--rdzv_endpoint first:29400 -m lightning_ddpm fit --config c.yaml" in told(machine)[1]
