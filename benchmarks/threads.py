"""Times the network by number of threads and how they wait for each other, on an idle and on a busy machine."""

import itertools
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.models import SHAPES, build_model
from benchmarks.report import alternate_order, measure_in_subprocess, write_result
from lightning_ddpm.utils.threads import SPIN_COUNT

BUSY = (0, 1, 2)
"""Numbers of other processes that compute all the time."""
POLICIES: dict[str, dict[str, str]] = {
    "GNU OpenMP's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (1000, SPIN_COUNT, 30_000)},
}
SECONDS = 1.5
"""Time of one measurement, and ten times this at most."""


def run(options: Namespace) -> None:
    """Measure every setting beside every number of busy processes, in turn."""
    threads = torch.get_num_threads()
    settings = {"1 thread": (1, POLICIES["GNU OpenMP's default"])}
    settings |= {f"{threads} threads, {name}": (threads, policy) for name, policy in POLICIES.items()}
    values: dict[str, list[list[float]]] = {name: [[] for _ in BUSY] for name in settings}
    for turn, (column, busy) in itertools.product(range(options.rounds), enumerate(BUSY)):
        with keep_busy(busy):
            for name, (n, policy) in alternate_order(settings, turn):
                environment = {"OMP_NUM_THREADS": str(n), **policy}
                found = measure_in_subprocess("threads", environment, config=options.config)
                values[name][column].append(found["milliseconds"])
    described = {"unit": "ms, forward and backward", "columns": [f"beside {n} busy processes" for n in BUSY]}
    described |= {"config": options.config, "batch": SHAPES[options.config][2], "rounds": options.rounds}
    write_result(options.out, f"threads_{options.config}", described, values)


@contextmanager
def keep_busy(processes: int) -> Iterator[None]:
    """Run this many processes that compute all the time, inside the context."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def measure(config: str) -> dict[str, float]:
    """Return the median milliseconds of forward and backward of the config's network."""
    module = build_model(config).train()
    _, _, batch = SHAPES[config]
    x, t = torch.randn(batch, *module.image_shape), torch.randint(1, module.schedule.T + 1, (batch,))
    seconds: list[float] = []
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS or (len(seconds) < 4 and spent < 10 * SECONDS):
        begun = time.perf_counter()
        module.network(x, t).square().mean().backward()
        seconds.append(time.perf_counter() - begun)
    return {"milliseconds": 1000 * statistics.median(seconds[1:] or seconds)}
