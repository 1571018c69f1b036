"""The memory that torch computes in on a CPU: kept from one step to the next, and in huge pages.

A training step allocates and frees every activation. By default the C library returns each large block to the kernel,
which clears new pages of 4 KiB for the next one: 13,000 page faults a step of the network of configs/mnist.yaml. Kept
and in pages of 2 MiB, the same step is more than twice as fast on a virtual machine, whose address translation is
slow, and no result changes (``python -m benchmarks huge_pages``).
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26}
"""Of glibc's malloc: huge pages by madvise; no block of its own mapping; memory is not returned; growth by 64 MiB."""
MIN_GLIBC = (2, 35)
"""The first version that can ask for huge pages."""
SYSTEM = Path("/")


def restart_with_huge_pages() -> None:
    """Start this program again with memory in huge pages, where that helps; return where it does not.

    The C library reads the setting only when a process starts. The process keeps its number, its files and its
    arguments. Nothing is done where the user has set GLIBC_TUNABLES, under a debugger or profiler, where the C library
    is another or older, where the kernel has no huge pages, and beside an NVIDIA GPU, which has its own memory.
    """
    debugged = sys.gettrace() is not None or sys.getprofile() is not None
    if not debugged and sys.orig_argv and sys.executable and has_use(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: format_tunables()})


def has_use(environment: Mapping[str, str], system: Path = SYSTEM) -> bool:
    """Return whether a restart would change the pages of this machine's memory.

    Args:
        environment: the process's variables.
        system: the root of the file system.
    """
    if VARIABLE in environment or (system / "dev" / "nvidiactl").exists() or find_glibc() < MIN_GLIBC:
        return False
    try:
        setting = (system / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False
    return "[never]" not in setting


def find_glibc() -> tuple[int, ...]:
    """Return the version of the GNU C library that Python runs with, (0,) for another one."""
    name, version = platform.libc_ver()
    numbers = version.split(".")
    return tuple(map(int, numbers)) if name == "glibc" and all(map(str.isdigit, numbers)) else (0,)


def format_tunables() -> str:
    """Return the value of the variable."""
    return ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())
