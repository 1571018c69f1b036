"""Results that are cached between runs. A run goes on without the cache where it cannot be used.

A cached file ends with the SHA-256 of what stands before it, which is compared before anything is parsed: a file that
is damaged in any way counts as missing. NumPy reads its own formats with the digest at their end.
"""

import re
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import get_cache_folder, write_atomically
from lightning_ddpm.utils.hashing import hash_bytes

MARK = b"\nsha256 "
"""Stands between the content and its digest."""
DIGEST_BYTES = len(MARK) + 64


def seal(content: bytes) -> bytes:
    """Return the end of a file with this content: its digest."""
    return MARK + hash_bytes(content).encode()


def find_cached(name: str) -> Path | None:
    """Return the path of a cached result, whether it exists or not; ``None`` where there is no place for a cache."""
    try:
        return get_cache_folder() / name
    except (UserError, RuntimeError, KeyError, OSError) as error:  # neither HOME nor an entry in the list of users
        report_unusable("of lightning_ddpm", str(error))
        return None


def read_cached(path: Path | None) -> bytes | None:
    """Return the content of a cached file; ``None`` where it is missing or damaged, or cannot be read."""
    try:
        content = path.read_bytes() if path else b""
    except FileNotFoundError:
        return None
    except (OSError, MemoryError):  # writing it again reports what is wrong
        return None
    content, end = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if end == seal(content):
        return content
    if path:
        report(f"computed again: {path} is damaged, or was written by an older version")
    return None


def write_cached(path: Path | None, content: bytes) -> None:
    """Write content with its digest. A cache that cannot be written is reported once, and nothing else happens."""
    if path is None:
        return
    try:
        write_atomically(path, lambda file: file.write(content + seal(content)))
    except OSError as error:
        report_unusable(str(path.parent.parent), error.strerror or str(error))


def report_unusable(folder: str, why: str, fix: str = "set LIGHTNING_DDPM_CACHE to a folder that can be") -> None:
    """Print, once in a process and on the first rank only, that a cache folder cannot be used.

    Args:
        folder: the folder.
        why: what is wrong with it.
        fix: the first words of the advice; the last one is "written".
    """
    if folder not in _REPORTED:
        _REPORTED.add(folder)
        line = f"going on without the cache {folder} ({why}); to keep results between runs, {fix} written"
        rank_zero_only(report)(re.sub(r"\s+", " ", line))


_REPORTED: set[str] = set()
