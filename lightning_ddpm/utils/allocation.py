"""Limits on what the construction of a module may allocate: a config of one line can describe terabytes."""

import math
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_ddpm.utils.errors import UserError

FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full, torch.randint, torch.normal}
SEQUENCES = {torch.linspace: 2, torch.arange: 1, torch.logspace: 2}
"""Functions of torch that make tensors of a given shape, and those whose length is an argument (from 0)."""

MAX_TENSORS = 10_000
"""Most tensors of a network."""


class _AllocationLimit(TorchFunctionMode):
    """Counts the tensors that Python code makes, before they are made."""

    def __init__(self, max_bytes: float, max_tensors: float, message: str) -> None:
        super().__init__()
        self.max_bytes, self.max_tensors, self.message = max_bytes, max_tensors, message
        self.bytes = self.tensors = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES or func in SEQUENCES:
            self.bytes += 4 * _count_elements(func, args, kwargs)
            self.tensors += 1
            if self.bytes > self.max_bytes or self.tensors > self.max_tensors:
                raise UserError(self.message)
        return func(*args, **kwargs)


def _count_elements(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    if func in SEQUENCES:
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, int | float)]
        return int(max(map(abs, given), default=0))
    shape = kwargs.get("size", args)
    numbers = shape[0] if shape and isinstance(shape[0], list | tuple) else shape
    return math.prod(abs(each) for each in numbers if isinstance(each, int))


@contextmanager
def limit_allocation(max_bytes: float, max_tensors: float, message: str) -> Iterator[None]:
    """Raise UserError with this message when code in the context makes more or larger tensors in all."""
    with _AllocationLimit(max_bytes, max_tensors, message):
        yield


@contextmanager
def limit_to_weights(weights: Mapping[str, Tensor], where: str) -> Iterator[None]:
    """Raise UserError when a module built in the context is far larger than these weights.

    Args:
        weights: the weights of the module that a file holds.
        where: the file, for the message.
    """
    total = sum(each.numel() * 4 for each in weights.values())
    message = f"{where} describes a network that is far larger than the weights in it"
    with limit_allocation(2 * total + 2**27, 2 * len(weights) + 1000, message):
        yield


def check_size(kind: Callable[..., object], arguments: Mapping[str, Any], name: str) -> None:
    """Check that the weights of a network and their average fit into this machine's memory, without making them.

    Args:
        kind: the network's class.
        arguments: its arguments. Where the network cannot be built with them, nothing is checked.
        name: the option that holds the network, for the message.

    Raises:
        UserError: they do not fit.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    memory = pages if limit == resource.RLIM_INFINITY else min(pages, limit)
    message = (
        f"{name} describes a network whose weights and their average do not fit into this machine's "
        f"{memory / 2**30:,.0f} GiB of memory, or that has more than {MAX_TENSORS:,} tensors; lower its width or its "
        "number of blocks"
    )
    refused: UserError | None = None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            with limit_allocation(memory / 2, MAX_TENSORS, message):
                kind(**arguments)
        except UserError as error:
            refused = error if str(error) == message else None
        except Exception:  # the network's own construction reports it
            return
    if refused:
        raise refused
