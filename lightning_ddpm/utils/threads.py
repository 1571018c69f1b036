"""The threads that torch computes with on a CPU: how many, and how they wait for each other."""

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

SPIN_COUNT = 6000
"""How often a waiting thread of GNU's OpenMP looks for work before it sleeps, about a third of a millisecond.

Its default is 300,000. Beside other busy processes a thread then spins for the one that has no processor: on two cores
the digits network takes 91 ms on an idle machine and 3.5 s beside a busy process; with this count 112 and 351 ms, with
one thread 133 and 141 (``python -m benchmarks threads``). Results do not depend on it.
"""
CGROUP = Path("/sys/fs/cgroup")


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how long threads spin, unless the user has; it takes effect if torch has not been imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def limit_threads() -> None:
    """Compute with no more threads than the container's share of the processors, which torch does not look at."""
    import torch  # not before limit_spinning

    quota = read_cpu_quota()
    if quota and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > quota:
        torch.set_num_threads(quota)


def read_cpu_quota(folder: Path = CGROUP) -> int | None:
    """Return how many processors the control group of this process may use, rounded up; ``None`` for no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no Linux, no control groups, or "max"
        return None


def describe_threads() -> str:
    """Return the number of threads, and what to do where other processes keep the processors busy."""
    import torch

    threads, cpus = torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    text = f"{threads} thread{'s' if threads > 1 else ''}"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and cpus and busy > cpus / 2:
        text += f" ({busy:.1f} processes keep {cpus} processors busy: OMP_NUM_THREADS=1 may be faster)"
    return text
