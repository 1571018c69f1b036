"""The program in a process of its own that need not import torch again: a fork of one that has imported everything.

The process is real: it has its own number, session, environment, files and signals, and ends with a status. Only what
happens before ``lightning_ddpm.__main__`` runs is missing, which tests of the start itself therefore cannot use.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_ddpm.utils.huge_pages import VARIABLE, format_tunables

IMPORTED = ("fit", "sample", "evaluate", "check_data")
"""Commands whose modules the first process imports."""


@cache
def _get_context() -> ForkServerContext:
    """Return the context whose first process has been started, with the memory that the program asks for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"lightning_ddpm.commands.{name}" for name in IMPORTED])
    kept = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = format_tunables()
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop(VARIABLE)
        if kept is not None:
            os.environ[VARIABLE] = kept
    return context


def start_forked(words: Sequence[str], folder: Path, environment: Mapping[str, str], outputs: Sequence[Path]) -> Any:
    """Start ``python -m lightning_ddpm`` in a folder, with two files for what it prints; return its process."""
    process = _get_context().Process(target=_run, args=(words, folder, dict(environment), outputs))
    process.start()
    return process


def run_forked(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m lightning_ddpm`` in a folder until it ends, and kill it and its children at the timeout."""
    with TemporaryDirectory() as place:
        outputs = Path(place, "out"), Path(place, "err")
        process = start_forked(words, folder, environment, outputs)
        process.join(seconds)
        if is_late := process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        out, err = (path.read_text() if path.exists() else "" for path in outputs)
        if is_late:
            raise AssertionError(f"{words} had not ended after {seconds} s:\n{out}\n{err}")
        return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _run(words: Sequence[str], folder: Path, environment: dict[str, str], outputs: Sequence[Path]) -> None:
    """Become the program, in the process that was forked."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | {VARIABLE: format_tunables()})
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    for number, path in enumerate(outputs, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["lightning_ddpm", *words]
    try:
        runpy.run_module("lightning_ddpm", run_name="__main__", alter_sys=True)
    except Exception as error:  # which multiprocessing prints in a way of its own
        sys.excepthook(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        sys.exit(1)
