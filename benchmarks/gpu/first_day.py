"""``python -m benchmarks.gpu.first_day``: measure training and sampling on a GPU, then run the tests that need one.

Each part runs in a process of its own with a time limit; what fails is recorded in words and the next variant runs. The
results so far are written after every variant. No network is needed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import variants

PARTS: dict[str, tuple[Callable[..., Any], int]] = {
    "training": (variants.measure_training, 240),
    "sampling": (variants.measure_sampling, 90),
    "eigenvalues": (variants.measure_eigenvalues, 30),
}
"""The parts in the order of their value: what measures one, and its time limit in seconds."""
TESTS = 120
"""Time limit of the tests in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.first_day", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("first_day"), help="folder of the results")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu only to try this program")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this program")
    parser.add_argument("--part", choices=list(PARTS), help="this part alone, in this process")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        run_part(options.part, options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; --device cpu --tiny tries this program without one")
    for part, (_, limit) in PARTS.items():
        run_limited(part, [sys.executable, "-m", "benchmarks.gpu.first_day", "--part", part, *sys.argv[1:]], limit)
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "tests"]
    if not options.tiny:
        run_limited("pytest -m gpu", tests, TESTS)


def run_limited(name: str, command: list[str], seconds: int) -> None:
    """Run a command until it ends or its time is over, and print how it ended."""
    started = time.perf_counter()
    try:
        status = f"ended with status {subprocess.run(command, timeout=seconds, check=False).returncode}"
    except subprocess.TimeoutExpired:
        status = f"was stopped at its limit of {seconds} s; what it had measured is kept"
    print(f"{name} {status} after {time.perf_counter() - started:.0f} s", flush=True)


def run_part(part: str, options: argparse.Namespace) -> None:
    """Measure every variant of a part, and write the results after each of them."""
    results: dict[str, Any] = {}
    for name, measure in PARTS[part][0](torch.device(options.device), options.tiny):
        try:
            results[name] = measure()
        except Exception as error:  # the next variant may work
            results[name] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        print(f"{part}, {name}: {results[name]}", flush=True)
        content = {"device": describe_device(options.device), "torch": torch.__version__, "results": results}
        (options.out / f"{part}.json").write_text(json.dumps(content, indent=1))


def describe_device(device: str) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name(0) if device == "cuda" else "CPU"


if __name__ == "__main__":
    main()
