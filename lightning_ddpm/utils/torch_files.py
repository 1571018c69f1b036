"""Write files of ``torch.save`` with a digest, and read those that anyone may have written.

Reading runs no code, and nothing larger than the file is made.

Pickles of a few bytes can describe lists that contain themselves, a million references to one list, and tensors of
terabytes. What is read is therefore checked before anything walks through it.
"""

import hashlib
import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from copy import copy as shallow_copy
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from lightning_ddpm.utils.errors import UserError, first_line

MAX_DEPTH = 50
"""Deepest nesting of lists and dicts; those of a run's checkpoints have about 12 levels."""
MAX_ITEMS = 10**7
"""Most items in all lists and dicts."""
SHARED = 8
"""How many times as large as the file the tensors may be together: weights that are equal may be stored once."""
SEAL = b"sha256 "
"""Begin of the comment of a zip archive that :func:`save_with_digest` has written; the digest follows."""
PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), torch.dtype, torch.device, torch.Size)


class _HashingFile(io.RawIOBase):
    """Passes bytes on to a file and hashes them on their way, so that nothing is read again for its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)


def save_with_digest(content: Any, file: BinaryIO) -> None:
    """Write content by ``torch.save``, with the SHA-256 of the archive as its comment.

    Any program reads it as a file of ``torch.save``; :func:`read_torch_file` compares the digest.

    Args:
        content: what to save.
        file: an empty file, opened for writing.
    """
    hashing = _HashingFile(file)
    torch.save(content, cast(BinaryIO, hashing))
    seal = SEAL + hashing.digest.hexdigest().encode()
    file.seek(-2, io.SEEK_END)  # the length of the comment, which was 0 until now
    file.write(len(seal).to_bytes(2, "little") + seal)


def copy_to_host(content: Any) -> Any:
    """Return nested dicts, lists and tuples with every tensor on the CPU, each storage copied once.

    Copies from a GPU go to pinned memory and run at the same time; one wait ends them all. Tensors that share their
    storage still do. Those on the CPU are not copied.
    """
    storages: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
    waiting: set[torch.device] = set()

    def copy_storage(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := id(storage)) not in storages:  # torch returns one object for a storage while it is kept
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            pinned = tensor.device.type == "cuda"
            host = torch.empty(whole.shape, dtype=torch.uint8, pin_memory=pinned)
            storages[key] = storage, host.copy_(whole, non_blocking=pinned)
            if pinned:
                waiting.add(tensor.device)
        return storages[key][1]

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device.type == "cpu":
                return value
            if value.layout != torch.strided:
                return value.detach().cpu()
            host = copy_storage(value).untyped_storage()
            return torch.empty(0, dtype=value.dtype).set_(host, value.storage_offset(), value.shape, value.stride())
        if type(value) in (list, tuple):
            return type(value)(map(copy, value))
        if isinstance(value, dict):
            result = shallow_copy(value)  # with the attributes of a state_dict, too
            result.update((key, copy(each)) for key, each in value.items())
            return result
        return value

    copied = copy(content)
    for device in waiting:
        torch.cuda.synchronize(device)
    return copied


def read_torch_file(path: Path, what: str) -> Any:
    """Return the content of a file of ``torch.save``: tensors and plain data only, on the CPU.

    Args:
        path: the file.
        what: description of such a file, for the messages, as in "a checkpoint".

    Raises:
        UserError: it is damaged, holds code, is no such file, or describes more than it holds.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_plain(content, path.stat().st_size)
        return content
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than weights and plain data, or is not {what}, and reading it could "
            f"run code ({first_line(error)})"
        ) from error
    except Exception as error:  # unpickling other data raises any kind of exception
        raise UserError(f"{path} is damaged, or is not {what}: {first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Check that the parts of a zip file are not larger than the file itself, and its digest if it has one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(2)
    if begin != b"PK":
        raise UserError("it is not a zip archive, as torch.save writes today, and reading it could run code")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in parts) or sum(each.file_size for each in parts) > size:
        raise UserError(f"it has {size:,} bytes and declares more; torch.save compresses nothing")
    _check_seal(path, size)


def _check_seal(path: Path, size: int) -> None:
    """Compare the digest in the archive's comment, if it has one; zipfile does not notice a comment that is cut off."""
    length, digest, left = len(SEAL) + 64, hashlib.sha256(), size
    with path.open("rb") as file:
        file.seek(-2, io.SEEK_END)
        if file.read() == bytes(2):  # no comment, as torch.save writes
            return
        file.seek(-(length + 2), io.SEEK_END)
        end = file.read()
        file.seek(0)
        left -= len(end)
        while left > 0 and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    digest.update(bytes(2))
    if end != length.to_bytes(2, "little") + SEAL + digest.hexdigest().encode():
        raise UserError("it is damaged: its SHA-256 is not the one that was written")


def check_plain(content: object, size: int) -> None:
    """Check that content from a file of this size has a finite, moderate depth and number of items, and real tensors.

    Raises:
        UserError: it has not.
    """
    items = total = 0
    waiting: list[Iterator[object]] = [iter([content])]
    while waiting:
        for value in waiting[-1]:
            items += 1
            if isinstance(value, Tensor):
                total += _check_tensor(value, size)
            elif isinstance(value, dict | list | tuple | set | frozenset) and type(value) is not torch.Size:
                waiting.append(iter([*value.keys(), *value.values()] if isinstance(value, dict) else value))
                break
            elif not isinstance(value, PLAIN) or (isinstance(value, int) and value.bit_length() > 512):
                raise UserError(f"it holds {type(value).__name__}, which is neither a tensor nor plain data")
        else:
            waiting.pop()
        if len(waiting) > MAX_DEPTH + 1:
            raise UserError(f"its lists are more than {MAX_DEPTH} levels deep, or contain themselves")
        if items > min(MAX_ITEMS, 10_000 + size):
            raise UserError(f"it has {size:,} bytes and describes more than {items - 1:,} items")
        if total > SHARED * size + 2**20:
            raise UserError(f"it has {size:,} bytes and describes tensors of more than {total:,}")


def _check_tensor(tensor: Tensor, size: int) -> int:
    """Return the bytes of a tensor, after checking that it is dense and that all of its elements are in the file."""
    bytes_of = math.prod(tensor.shape) * tensor.element_size()
    if (
        tensor.device.type != "cpu"
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        raise UserError(f"it holds a tensor of shape {list(tensor.shape)} that is not dense")
    stored = tensor.untyped_storage().nbytes()
    if bytes_of > stored or stored > size:
        raise UserError(f"it has {size:,} bytes and declares a tensor of shape {list(tensor.shape)}")
    return bytes_of
