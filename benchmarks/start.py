"""Times the start: ``--help``, and the quickstart until its first step is done, with torch.compile as well."""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace

from benchmarks.models import CONFIGS
from benchmarks.report import time_in_turns, write_result

PROGRAM = [sys.executable, "-m", "lightning_ddpm"]


def run(options: Namespace) -> None:
    """Time processes of their own, after one round that warms up the file system's cache."""
    imports = "import torch, pytorch_lightning"
    contenders = {
        "imports of torch and Lightning": lambda: subprocess.run([sys.executable, "-c", imports], check=True),
        "--help": lambda: _run_program("--help"),
        "sample --help": lambda: _run_program("sample", "--help"),
        "fit, until the first step is done": _run_first_step,
    }
    write_result(
        options.out, "start", {"per": "start", "rounds": options.rounds}, time_in_turns(contenders, options.rounds)
    )


def run_compiled(options: Namespace) -> None:
    """Time the first step with ``Compile``, with an empty and with a warm cache of torch.compile."""
    with tempfile.TemporaryDirectory() as cache:
        contenders = {"empty cache": _run_with_empty_cache, "warm cache": lambda: _run_first_step(cache)}
        write_result(
            options.out,
            "compiled",
            {"per": "start", "rounds": options.rounds},
            time_in_turns(contenders, options.rounds),
        )


def _run_with_empty_cache() -> None:
    with tempfile.TemporaryDirectory() as cache:
        _run_first_step(cache)


def _run_program(*arguments: str) -> None:
    subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL)


def _run_first_step(compile_cache: str | None = None) -> None:
    """Run fit until it reports its first step, then end it.

    Args:
        compile_cache: folder of torch.compile's cache; ``None`` to run without torch.compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_steps", "1", "--trainer.default_root_dir", folder]
        words = [*PROGRAM, "fit", "--config", str(CONFIGS / "digits.yaml"), *options]
        environment = dict(os.environ)
        if compile_cache:
            words += ["--trainer.callbacks+", "lightning_ddpm.callbacks.Compile"]
            environment["TORCHINDUCTOR_CACHE_DIR"] = compile_cache
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            if not any(line.startswith("step 1 of 1:") for line in process.stdout):
                raise RuntimeError("fit ended without a first step; run it by hand to see why")
            process.kill()
