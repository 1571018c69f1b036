"""How long it takes to begin: ``--help``, and the quickstart's first step."""

import subprocess
import sys
import tempfile
from argparse import Namespace

from benchmarks.report import in_turn, write
from benchmarks.training import CONFIGS

PROGRAM = [sys.executable, "-m", "lightning_ddpm"]


def run(options: Namespace) -> None:
    """Each a process of its own, after one that has warmed the file system's cache up."""
    imports = "import torch, pytorch_lightning"
    contenders = {
        "python, torch and Lightning": lambda: subprocess.run([sys.executable, "-c", imports], check=True),
        "--help": lambda: _call("--help"),
        "sample --help": lambda: _call("sample", "--help"),
        "fit, to the first step's end": _first_step,
    }
    write(options.out, "start", {"per": "start", "rounds": options.rounds}, in_turn(contenders, options.rounds))


def _call(*arguments: str) -> None:
    subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL)


def _first_step() -> None:
    """Until the program says that the first step is done; what follows is not waited for."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_steps", "1", "--trainer.default_root_dir", folder]
        words = [*PROGRAM, "fit", "--config", str(CONFIGS / "digits.yaml"), *options]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if not any(line.startswith("step 1 of 1:") for line in process.stdout):
                raise RuntimeError("fit has ended without a first step")
            process.kill()
