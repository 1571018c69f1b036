"""``python -m benchmarks.gpu.first_day``: measure training and sampling on a GPU, then run the tests that need one.

Each part runs in a process of its own with a time limit; what fails is recorded in words and the next variant runs. The
results so far are written after every variant. The time that is left goes to configs/cifar10_fast.yaml, whose FID is
recorded by images seen. No network is needed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import quality, variants
from benchmarks.gpu.variants import Trial, Variants

PARTS: dict[str, tuple[Callable[[Trial], Variants], int]] = {
    "training": (variants.measure_training, 180),
    "sampling": (variants.measure_sampling, 60),
    "inception": (quality.measure_inception, 30),
    "eigenvalues": (variants.measure_eigenvalues, 20),
    "curve": (quality.measure_curve, 3600),
}
"""The parts, the last one in the time that is left: what measures one, and its time limit in seconds."""
TESTS = 150
"""Time limit of the tests in seconds."""
START = 15
"""Seconds until a part's process has imported everything."""


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.first_day", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("first_day"), help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, for the FID curve")
    parser.add_argument("--weights_path", type=Path, help="Inception's weights (default: torch.hub's cache)")
    parser.add_argument("--minutes", type=float, default=9.8, help="all parts together; more make a longer FID curve")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu only to try this program")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this program")
    parser.add_argument("--part", choices=list(PARTS), help="this part alone, in this process")
    parser.add_argument("--seconds", type=float, default=0.0, help="time of training, for --part curve")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        device = torch.device(options.device)
        trial = Trial(device, options.tiny, options.data, options.weights_path, options.seconds)
        run_part(options.part, trial, options.out)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device; --device cpu --tiny tries this program without one")
    end = time.monotonic() + 60 * options.minutes
    for part, (_, limit) in PARTS.items():
        if part == "curve" and not options.tiny:
            report = ["--junitxml", str(options.out / "tests.xml")]
            tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", *report, "tests"]
            run_limited("pytest -m gpu", tests, min(TESTS, end - time.monotonic()))
        left = end - time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu.first_day", *sys.argv[1:], "--part", part]
        training = ["--seconds", str(left - START - quality.END)]
        run_limited(part, [*command, *training], min(limit, left))


def run_limited(name: str, command: list[str], seconds: float) -> None:
    """Run a command until it ends or its time is over, and print how it ended; no process of it is left."""
    started = time.perf_counter()
    if seconds <= 0:
        print(f"{name} was not started: the time is over", flush=True)
        return
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = f"ended with status {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        status = f"was stopped at its limit of {seconds:.0f} s; what it had measured is kept"
        os.killpg(process.pid, signal.SIGINT)  # pytest writes its report
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print(f"{name} {status} after {time.perf_counter() - started:.0f} s", flush=True)


def run_part(part: str, trial: Trial, out: Path) -> None:
    """Measure every variant of a part, and write the results after each of them."""
    results: dict[str, Any] = {}
    for name, measure in PARTS[part][0](trial):
        try:
            results[name] = measure()
        except Exception as error:  # the next variant may work
            results[name] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        print(f"{part}, {name}: {results[name]}", flush=True)
        device = torch.cuda.get_device_name(0) if trial.device.type == "cuda" else "CPU"
        content = {"device": device, "torch": torch.__version__, "results": results}
        (out / f"{part}.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
