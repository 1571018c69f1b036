"""What was measured, where, and the tables that are made of it."""

import json
import math
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

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
OF_THE_TABLE = ("per", "unit", "columns", "images")
"""Settings that shape the table, rather than stand above it."""

Work = TypeVar("Work")
LIBRARIES = ("lightning-ddpm", "torch", "pytorch-lightning", "diffusers", "denoising-diffusion-pytorch")


def device() -> torch.device:
    """Where things are measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other, forwards in one round and backwards in the next, so that who comes after
    whom is not for or against any; before that one round that does not count. Work that is so long that the machine
    changes meanwhile calls :func:`pause` in between.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for found in seconds.values():
            found.append(0.0)
        running, laps = {name: greenlet(work) for name, work in contenders.items()}, count(turn)
        while running:
            for name, work in forwards_and_back(running, next(laps)):
                synchronize()
                started = time.perf_counter()
                work.switch()
                synchronize()
                seconds[name][-1] += time.perf_counter() - started
            running = {name: work for name, work in running.items() if not work.dead}
    return {name: found[1:] for name, found in seconds.items()}


def pause() -> None:
    """Inside what :func:`cycle_labels` measures, let the others come as far; elsewhere nothing."""
    others = getcurrent().parent
    if others is not None:
        others.switch()


def forwards_and_back(contenders: Mapping[str, Work], turn: int) -> list[tuple[str, Work]]:
    """Those of one round, in its order."""
    return list(contenders.items())[:: -1 if turn % 2 else 1]


def alone(module: str, **settings: Any) -> dict[str, float]:
    """What ``measure`` of that file here says, told the settings, in a process of its own."""
    program = f"import json, sys; from benchmarks.{module} import measure; found = measure(**json.loads(sys.argv[1]))"
    words = [sys.executable, "-c", f"{program}; print(); print(json.dumps(found))", json.dumps(settings)]
    ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def megabytes_at_most(of_the_process: bool = False) -> float:
    """The most memory that was taken since the start: the GPU's, or, without one or if asked, this process's.

    On Linux not by getrusage, which has the process that started this one in it.
    """
    if torch.cuda.is_available() and not of_the_process:
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(kilobytes) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def hardware() -> str:
    """The processor's or the GPU's name, and how many cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    )
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def write(
    out: Path,
    what: str,
    settings: Mapping[str, Any],
    values: Mapping[str, list[Any]],
    megabytes: Mapping[str, list[float]] = MappingProxyType({}),
) -> None:
    """Write one benchmark's seconds, by who took them, and print them.

    Args:
        out: folder of the results.
        what: the benchmark.
        settings: what was measured; "per" names what takes the seconds, "images" is how many images that makes.
        values: seconds of each contender, of each round; or, where a setting "unit" says what changes from one value to
            the next, whatever each is called, with the setting "columns" for what stands above them.
        megabytes: what each takes of memory at most, where that was measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "what": what,
        "hardware": hardware(),
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "values": dict(values),
        "megabytes": dict(megabytes),
    }
    slug = re.sub(r"\W+", "-", hardware().lower()).strip("-")
    (out / f"{what}-{slug}.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)), flush=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(found: Mapping[str, Any]) -> list[str]:
    """Markdown: median and quartiles of each, and the quartiles of its ratio to the first in the same round; under a
    "unit", all values in their order, several of one place as their median and their range.
    """
    settings, megabytes = found["settings"], found.get("megabytes", {})
    if unit := settings.get("unit"):
        lines = [f"| {unit} | {' | '.join(settings['columns'])} |", "|---|" + "---|" * len(settings["columns"])]
        rows = {name: [_place(each) for each in row] for name, row in found["values"].items()}
        return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    images, first = settings.get("images"), _first(found)
    heads = [f"ms per {settings.get('per', 'step')}, median (quartiles)", "ratio to the first, median (quartiles)"]
    known = median_interval(first) is not None
    heads += ["95 % of its median"] if known else []
    heads += ["images/s"] if images else []
    heads += ["MB at most"] if megabytes else []
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, seconds in found["values"].items():
        ratios = [one / other for one, other in zip(seconds, first, strict=True)]
        cells = [_quartiles([1000 * each for each in seconds]), _quartiles(ratios)]
        if interval := median_interval(ratios):
            cells.append(" to ".join(map(rounded, interval)))
        if images:
            cells.append(rounded(images / statistics.median(seconds)))
        if megabytes:
            cells.append(f"{statistics.median(megabytes[name]):.0f}" if name in megabytes else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _place(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return f"{rounded(statistics.median(value))} ({rounded(min(value))} to {rounded(max(value))})"
    return "" if value is None else rounded(value, 4)


def _first(found: Mapping[str, Any]) -> list[float]:
    values: list[float] = next(iter(found["values"].values()))
    return values


def _quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{rounded(middle)} ({rounded(low)} to {rounded(high)})"


def median_interval(values: list[float]) -> tuple[float, float] | None:
    """Where the median of what the values are drawn from lies with at least 95 per cent, whatever that is: between two
    of the values, as many from either end (the sign test turned round); ``None`` of fewer than six.
    """
    n, inside = len(values), 1.0
    for left_out in range(n // 2):
        inside -= 2 * math.comb(n, left_out) / 2**n
        if inside < 0.95:
            break
    else:
        left_out = n // 2
    ordered = sorted(values)
    return (ordered[left_out - 1], ordered[n - left_out]) if left_out else None


def rounded(value: float, figures: int = 3) -> str:
    """So many figures, and thousands rather than a power of ten."""
    return f"{float(f'{value:.{figures}g}'):,g}"


def write_tables(page: Path, out: Path) -> None:
    """Put the results' tables into the page, each between the marks of its benchmark."""
    text = page.read_text()
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    for what in {each["what"] for each in results}:
        before, mark, rest = text.partition(f"<!-- {what} -->\n")
        if not mark:
            continue
        _, end, after = rest.partition("<!-- end -->\n")
        lines: list[str] = []
        for found in (each for each in results if each["what"] == what):
            settings = ", ".join(
                f"{name} {value}" for name, value in found["settings"].items() if name not in OF_THE_TABLE
            )
            versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items() if value)
            above = [each for each in (found["hardware"], settings, found["finished"][:10], versions) if each]
            lines += [f"{'; '.join(above)}.", "", *table(found), ""]
        text = "".join([before, mark, *(f"{line}\n" for line in lines), end, after])
    page.write_text(text)
