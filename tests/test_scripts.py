"""The scripts for SLURM and for several machines, run with stand-ins for srun, scontrol and torchrun."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.command_line import REPOSITORY

STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
if [ "$(basename "$0")" = srun ]; then
    trap 'echo saved >> "$CALLS"; exit 0' USR1
    for _ in $(seq "$TENTHS"); do sleep 0.1; done
    exit "$STATUS"
fi
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine whose scheduler writes every call of it to a file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "scontrol", "torchrun"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    settings = {"CALLS": str(tmp_path / "calls"), "TENTHS": "1", "STATUS": "0", "SLURM_JOB_ID": "77"}
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **settings}


def start(machine: dict[str, str], script: str, *words: object, **variables: str) -> subprocess.Popen[str]:
    line = ["bash", f"scripts/{script}", *map(str, words)]
    return subprocess.Popen(line, cwd=REPOSITORY, env={**machine, **variables}, text=True)


def read_calls(machine: dict[str, str]) -> list[str]:
    path = Path(machine["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def test_a_job_at_its_time_limit_saves_and_is_requeued(machine: dict[str, str], tmp_path: Path) -> None:
    job = start(machine, "train.sbatch", "c.yaml", tmp_path / "run", TENTHS="600")
    while not read_calls(machine):
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    step, saved, requeue = read_calls(machine)
    assert step.startswith("srun --kill-on-bad-exit=1 python -m lightning_ddpm fit --config c.yaml")
    assert f"--trainer.default_root_dir {tmp_path / 'run'}" in step
    assert (saved, requeue) == ("saved", "scontrol requeue 77")
    assert "--ckpt_path" not in step


def test_a_job_that_is_signalled_before_there_is_a_run_is_requeued(machine: dict[str, str], tmp_path: Path) -> None:
    """Bash handles signals after the command that it executes, here a slow look for checkpoints."""
    slow = tmp_path / "slow"
    slow.write_text('[() { sleep 0.5; builtin [ "$@"; }\n')
    job = start(machine, "train.sbatch", "c.yaml", tmp_path / "run", TENTHS="600", BASH_ENV=str(slow))
    time.sleep(0.3)
    assert read_calls(machine) == []
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert read_calls(machine)[-1] == "scontrol requeue 77"


@pytest.mark.parametrize(("status", "requeued"), [("138", True), ("1", False), ("2", False), ("137", False)])
def test_a_signalled_job_whose_run_failed_is_requeued_only_if_the_signal_ended_it(
    machine: dict[str, str], tmp_path: Path, status: str, requeued: bool
) -> None:
    program = Path(machine["PATH"].split(":")[0]) / "srun"
    program.write_text(program.read_text().replace("exit 0", f"exit {status}"))
    job = start(machine, "train.sbatch", "c.yaml", tmp_path / "run", TENTHS="600")
    while not read_calls(machine):
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == (0 if requeued else int(status))
    assert ("scontrol requeue 77" in read_calls(machine)) == requeued


@pytest.mark.parametrize("status", ["0", "3"])
def test_a_job_that_ends_by_itself_is_not_requeued(machine: dict[str, str], tmp_path: Path, status: str) -> None:
    job = start(machine, "train.sbatch", "c.yaml", tmp_path, "--data.num_workers", 4, STATUS=status)
    assert job.wait(30) == int(status)
    (step,) = read_calls(machine)
    assert step.endswith("--data.num_workers 4")


@pytest.mark.parametrize("existing", ["last.ckpt", "last-previous.ckpt", ".unsaved", None])
def test_both_scripts_resume_where_there_is_a_checkpoint(
    machine: dict[str, str], tmp_path: Path, existing: str | None
) -> None:
    if existing:
        (tmp_path / existing).touch()
    variables = {"NODES": "2", "GPUS": "8", "HOST": "first"}
    for script in ("train.sbatch", "train_nodes.sh"):
        assert start(machine, script, "c.yaml", tmp_path, "--ckpt_path", "old.ckpt", **variables).wait(30) == 0
    for line in read_calls(machine):
        assert line.endswith("--ckpt_path last" if existing else "--ckpt_path old.ckpt")
    assert "--rdzv_endpoint first:29400 -m lightning_ddpm fit --config c.yaml" in read_calls(machine)[1]


def test_both_scripts_start_the_same_command_in_a_container(machine: dict[str, str], tmp_path: Path) -> None:
    apptainer = Path(machine["PATH"].split(":")[0]) / "apptainer"
    apptainer.write_text(STAND_IN)
    apptainer.chmod(0o755)
    variables = {"NODES": "2", "GPUS": "8", "HOST": "first", "CONTAINER": "apptainer exec --nv image.sif"}
    for script in ("train.sbatch", "train_nodes.sh"):
        assert start(machine, script, "c.yaml", tmp_path, **variables).wait(30) == 0
    job, nodes = read_calls(machine)
    assert job.startswith(
        "srun --kill-on-bad-exit=1 apptainer exec --nv image.sif python -m lightning_ddpm fit --config"
    )
    assert nodes.startswith("apptainer exec --nv image.sif torchrun --nnodes 2")


@pytest.mark.parametrize(
    ("script", "words", "variables", "missing"),
    [
        ("train.sbatch", [], {}, "the config, such as"),
        ("train.sbatch", ["c.yaml"], {}, "the folder of the run"),
        ("train_nodes.sh", ["c.yaml", "run"], {"NODES": "2", "GPUS": "8"}, "HOST: the first machine"),
        ("train_nodes.sh", ["c.yaml", "run"], {"GPUS": "8", "HOST": "first"}, "NODES: the number of machines"),
        ("train_nodes.sh", ["c.yaml"], {"NODES": "2", "GPUS": "8", "HOST": "first"}, "the folder of the run"),
    ],
)
def test_what_is_missing_is_named(
    machine: dict[str, str], script: str, words: list[str], variables: dict[str, str], missing: str
) -> None:
    line, environment = ["bash", f"scripts/{script}", *words], {**machine, **variables}
    ran = subprocess.run(line, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    assert ran.returncode != 0
    assert missing in ran.stderr
    assert not read_calls(machine)
