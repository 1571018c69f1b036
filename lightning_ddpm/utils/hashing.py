"""SHA-256 digests of files, tensors and plain data, and the cache keys made of them."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_text(parts: Iterable[str]) -> str:
    """Return the SHA-256 of text (as UTF-8) in hexadecimal, given in parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


def make_cache_key(content: str | bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of text (as UTF-8) or bytes."""
    return hash_bytes(content.encode() if isinstance(content, str) else content)[:16]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_content(content: Any) -> str:
    """Return the SHA-256 of nested dicts, lists and tuples of tensors and plain values: of every value, in order."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, dict | list | tuple):
            digest.update(f"{len(value)} of".encode())
            for each in value:
                add(each)
                if isinstance(value, dict):
                    add(value[each])
        else:
            digest.update(repr(value).encode())

    add(content)
    return digest.hexdigest()
