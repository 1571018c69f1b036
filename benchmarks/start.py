"""How long it takes to begin: ``--help``, and the quickstart's first step, compiled too."""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace

from benchmarks.models import CONFIGS
from benchmarks.report import in_turn, write

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


def compiled(options: Namespace) -> None:
    """The same first step with ``Compile``: with nothing compiled before, and again."""
    with tempfile.TemporaryDirectory() as cache:
        contenders = {"nothing compiled before": _first_compiled, "again": lambda: _first_step(cache)}
        write(options.out, "compiled", {"per": "start", "rounds": options.rounds}, in_turn(contenders, options.rounds))


def _first_compiled() -> None:
    with tempfile.TemporaryDirectory() as cache:
        _first_step(cache)


def _call(*arguments: str) -> None:
    subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL)


def _first_step(compiled_in: str | None = None) -> None:
    """Until the program says that the first step is done; what follows is not waited for.

    Args:
        compiled_in: folder of what torch.compile made before; ``None`` for not compiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_steps", "1", "--trainer.default_root_dir", folder]
        words = [*PROGRAM, "fit", "--config", str(CONFIGS / "digits.yaml"), *options]
        environment = dict(os.environ)
        if compiled_in:
            words += ["--trainer.callbacks+", "lightning_ddpm.callbacks.Compile"]
            environment["TORCHINDUCTOR_CACHE_DIR"] = compiled_in
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            if not any(line.startswith("step 1 of 1:") for line in process.stdout):
                raise RuntimeError("fit has ended without a first step")
            process.kill()
