"""Times a training step on the CPU with the memory as the C library gives it, and kept in huge pages."""

import resource
import statistics
import time
from argparse import Namespace

import torch

from benchmarks.models import SHAPES, autocast, build_model
from benchmarks.report import alternate_order, measure_in_subprocess, write_result
from lightning_ddpm.utils.huge_pages import VARIABLE, format_tunables

MEMORY = {
    "the C library's default": "glibc.malloc.hugetlb=0",
    "huge pages": "glibc.malloc.hugetlb=1",
    "kept": format_tunables().replace("hugetlb=1", "hugetlb=0"),
    "kept in huge pages": format_tunables(),
}
SECONDS = 3.0
"""Time of one measurement."""


def run(options: Namespace) -> None:
    """Measure every setting in a process of its own, in turn."""
    settings = {"config": options.config, "precision": options.precision}
    settings["batch"] = options.batch_size or SHAPES[options.config][2]
    values: dict[str, list[list[float]]] = {name: [[], []] for name in MEMORY}
    for turn in range(options.rounds):
        for name, tunables in alternate_order(MEMORY, turn):
            found = measure_in_subprocess("huge_pages", {VARIABLE: tunables}, **settings)
            for column, each in zip(values[name], (found["milliseconds"], found["faults"]), strict=True):
                column.append(each)
    described = {"unit": "a training step", "columns": ["ms", "page faults"], **settings, "rounds": options.rounds}
    write_result(options.out, f"huge_pages_{options.config}_{options.precision}", described, values)


def measure(config: str, precision: str, batch: int) -> dict[str, float]:
    """Return the median milliseconds of a training step of the config's network, and its page faults."""
    module = build_model(config).train()
    optimizer = torch.optim.Adam(module.network.parameters(), fused=True)
    x, t = torch.randn(batch, *module.image_shape), torch.randint(1, module.schedule.T + 1, (batch,))
    seconds: list[float] = []
    faults: list[int] = []
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS or len(seconds) < 5:
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        with autocast(precision):
            output = module.network(x, t)
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {"milliseconds": 1000 * statistics.median(seconds[2:]), "faults": float(statistics.median(faults[2:]))}
