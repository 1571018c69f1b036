"""Read files of ``torch.save`` that anyone may have written: no code is run, and nothing larger than the file is made.

Pickles of a few bytes can describe lists that contain themselves, a million references to one list, and tensors of
terabytes. What is read is therefore checked before anything walks through it.
"""

import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ddpm.utils.errors import UserError, first_line

MAX_DEPTH = 50
"""Deepest nesting of lists and dicts; those of a run's checkpoints have about 12 levels."""
MAX_ITEMS = 10**7
"""Most items in all lists and dicts."""
SHARED = 8
"""How many times as large as the file the tensors may be together: weights that are equal may be stored once."""
PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), torch.dtype, torch.device, torch.Size)


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
    """Check that the parts of a zip file are not larger than the file itself; ``torch.save`` compresses nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(2)
    if begin != b"PK":
        raise UserError("it is not a zip archive, as torch.save writes today, and reading it could run code")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in parts) or sum(each.file_size for each in parts) > size:
        raise UserError(f"it has {size:,} bytes and declares more; torch.save compresses nothing")


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
