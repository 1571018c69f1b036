"""Timing in turns, results as JSON with their provenance, and the tables of benchmarks/RESULTS.md."""

import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet

from benchmarks.page import format_table, replace_table

PAGE = Path(__file__).parent / "RESULTS.md"
TABLE_SETTINGS = ("per", "unit", "columns", "images")
"""Settings that shape the table; the others are listed above it."""

Work = TypeVar("Work")
LIBRARIES = ("lightning-ddpm", "torch", "pytorch-lightning", "diffusers", "denoising-diffusion-pytorch")


def device() -> torch.device:
    """Return the device that is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_in_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each contender in every round, after one warm-up round.

    The order is reversed from round to round, so that no contender gains or loses by its predecessor. Work that takes
    so long that the machine changes meanwhile calls :func:`pause` in between, to let the others advance as far.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for found in seconds.values():
            found.append(0.0)
        running, laps = {name: greenlet(work) for name, work in contenders.items()}, count(turn)
        while running:
            for name, work in alternate_order(running, next(laps)):
                synchronize()
                started = time.perf_counter()
                work.switch()
                synchronize()
                seconds[name][-1] += time.perf_counter() - started
            running = {name: work for name, work in running.items() if not work.dead}
    return {name: found[1:] for name, found in seconds.items()}


def pause() -> None:
    """Let the other contenders of :func:`time_in_turns` advance as far; do nothing outside of it."""
    parent = getcurrent().parent
    if parent is not None:
        parent.switch()


def alternate_order(contenders: Mapping[str, Work], turn: int) -> list[tuple[str, Work]]:
    """Return the contenders in the order of this turn, which reverses from turn to turn."""
    return list(contenders.items())[:: -1 if turn % 2 else 1]


def measure_in_subprocess(
    module: str, environment: Mapping[str, str] = MappingProxyType({}), **settings: Any
) -> dict[str, float]:
    """Return what ``measure`` of that module of this folder returns for the settings, in a process of its own."""
    program = f"import json, sys; from benchmarks.{module} import measure; found = measure(**json.loads(sys.argv[1]))"
    words = [sys.executable, "-c", f"{program}; print(); print(json.dumps(found))", json.dumps(settings)]
    ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def peak_megabytes(of_the_process: bool = False) -> float:
    """Return the peak memory since the start: the GPU's or, without one or with ``of_the_process``, this process's.

    On Linux it is not taken from getrusage, whose peak includes that of the process that started this one.
    """
    if torch.cuda.is_available() and not of_the_process:
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(kilobytes) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def describe_hardware() -> str:
    """Return the name of the GPU, or of the CPU with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    )
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def write_result(
    out: Path,
    what: str,
    settings: Mapping[str, Any],
    values: Mapping[str, list[Any]],
    megabytes: Mapping[str, list[float]] = MappingProxyType({}),
) -> None:
    """Write one benchmark's result as JSON, and print its table.

    Args:
        out: folder of the results.
        what: name of the benchmark.
        settings: what was measured; "per" names the unit of work that the seconds are for, "images" is how many images
            one unit processes.
        values: seconds of each contender in each round; or, with a setting "unit", any quantity of each row at the
            values of the unit that the setting "columns" lists.
        megabytes: peak memory of each contender, if it was measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "what": what,
        "hardware": describe_hardware(),
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "values": dict(values),
        "megabytes": dict(megabytes),
    }
    slug = re.sub(r"\W+", "-", describe_hardware().lower()).strip("-")
    (out / f"{what}-{slug}.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print("\n".join(make_table(found)), flush=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def make_table(found: Mapping[str, Any]) -> list[str]:
    """Return a result as a Markdown table.

    Timings have the median and quartiles of each contender, and of its ratio to the first one in the same round. With a
    "unit", all values are listed in order; several values of one cell appear as their median and range.
    """
    settings, megabytes = found["settings"], found.get("megabytes", {})
    if unit := settings.get("unit"):
        rows = [[name, *map(_format_cell, row)] for name, row in found["values"].items()]
        return format_table([unit, *settings["columns"]], rows)
    images, first = settings.get("images"), _get_baseline(found)
    heads = ["", f"ms per {settings.get('per', 'step')}, median (quartiles)", "ratio to the first, median (quartiles)"]
    heads += ["95 % interval of its median"] if compute_median_interval(first) else []
    heads += ["images/s"] if images else []
    heads += ["peak MB"] if megabytes else []
    rows = []
    for name, seconds in found["values"].items():
        ratios = [one / other for one, other in zip(seconds, first, strict=True)]
        cells = [name, _format_quartiles([1000 * each for each in seconds]), _format_quartiles(ratios)]
        if interval := compute_median_interval(ratios):
            cells.append(" to ".join(map(round_value, interval)))
        if images:
            cells.append(round_value(images / statistics.median(seconds)))
        if megabytes:
            cells.append(f"{statistics.median(megabytes[name]):.0f}" if name in megabytes else "")
        rows.append(cells)
    return format_table(heads, rows)


def _format_cell(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return f"{round_value(statistics.median(value))} ({round_value(min(value))} to {round_value(max(value))})"
    return "" if value is None else round_value(value, 4)


def _get_baseline(found: Mapping[str, Any]) -> list[float]:
    values: list[float] = next(iter(found["values"].values()))
    return values


def _format_quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{round_value(middle)} ({round_value(low)} to {round_value(high)})"


def compute_median_interval(values: list[float]) -> tuple[float, float] | None:
    """Return an interval that contains the median of the values' distribution with at least 95 per cent probability.

    The distribution is arbitrary: the interval lies between two of the values, equally many from either end (the
    inverted sign test). Return ``None`` for fewer than six values.
    """
    n, inside = len(values), 1.0
    for skipped in range(n // 2):
        inside -= 2 * math.comb(n, skipped) / 2**n
        if inside < 0.95:
            break
    else:
        skipped = n // 2
    ordered = sorted(values)
    return (ordered[skipped - 1], ordered[n - skipped]) if skipped else None


def round_value(value: float, digits: int = 3) -> str:
    """Return the value with this many significant digits, with thousands separators instead of a power of ten."""
    return f"{float(f'{value:.{digits}g}'):,g}"


def write_tables(page: Path, out: Path) -> None:
    """Write the tables of the results into the page, each between the marks of its benchmark."""
    text = page.read_text()
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    for what in {each["what"] for each in results}:
        lines: list[str] = []
        for found in (each for each in results if each["what"] == what):
            lines += [_describe(found), "", *make_table(found), ""]
        text = replace_table(text, what, lines) or text
    page.write_text(text)


def _describe(found: Mapping[str, Any]) -> str:
    settings = (f"{name} {value}" for name, value in found["settings"].items() if name not in TABLE_SETTINGS)
    versions = (f"{name} {value}" for name, value in found["versions"].items() if value)
    parts = (found["hardware"], ", ".join(settings), found["finished"][:10], ", ".join(versions))
    return f"{'; '.join(part for part in parts if part)}."
