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
        "fit, to the end of the first step": _first_step,
    }
    write(options.out, "start", {"per": "start", "rounds": options.rounds}, in_turn(contenders, options.rounds))


def _call(*arguments: str) -> None:
    subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL)


def _first_step() -> None:
    """Until the line on the first step is there; what follows is not counted in, but must end."""
    with tempfile.TemporaryDirectory() as folder:
        _call(
            "fit",
            "--config",
            str(CONFIGS / "digits.yaml"),
            "--trainer.max_steps",
            "1",
            "--trainer.default_root_dir",
            folder,
        )
