"""What the operators of a program allocate, move and compute, by torch's hooks for operators, which are private.

A program can be traced with tensors that have shapes but no values, which takes no memory.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Operation(NamedTuple):
    """One operator that computes something.

    Attributes:
        name: as in ``aten.mm``.
        dtype: of its first tensor.
        flops: of convolutions, matrix products and attention; 0 for others.
        bytes: read and written, if nothing is in a cache.
    """

    name: str
    dtype: torch.dtype
    flops: int
    bytes: int


class Storage(NamedTuple):
    """An allocation; ``group`` is what it belongs to, empty if it was made while the program was traced."""

    bytes: int
    group: str


@contextmanager
def use_fake_tensors() -> Iterator[None]:
    """Make tensors without values inside the context; those from outside lose their values where they are used."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class FusedDropout(TorchFunctionMode):
    """Replaces dropout by the operator that GPUs use, which keeps a mask of a byte a value for the backward pass."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.dropout:
            return self._drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        kept: Tensor = torch.native_dropout(input, p, training)[0]
        return kept


class OperatorTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the allocations and the operators of a program inside its context.

    Attributes:
        storages: all allocations, in their order.
        changes: indices of storages, i when storage i is allocated and -1 - i when it is freed.
        operations: the operators in their order, without views.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[Storage] = []
        self.changes: list[int] = []
        self.operations: list[Operation] = []
        self._live: dict[int, weakref.ref[Any]] = {}

    def __enter__(self) -> "OperatorTrace":
        """Start; the garbage collector is off meanwhile, lest it free at another moment in every trace."""
        gc.collect()
        self._collects = gc.isenabled()
        gc.disable()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        if self._collects:
            gc.enable()
        self._live.clear()  # what is freed later is no part of the program

    def hold(self, group: str, tensors: Sequence[Tensor]) -> None:
        """Record the memory of tensors that exist when the program starts."""
        for each in tensors:
            self._add(each, group)

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        changed = _list_changed(func, args, kwargs)
        known = [each.untyped_storage() for each in inputs]  # kept, so that no other object gets the same id
        fresh = [each for each in outputs if id(each.untyped_storage()) not in set(map(id, known))]
        for each in fresh:
            self._add(each, "")
        computes = (fresh or changed) and func.namespace == "aten" and not str(func).startswith("aten.empty")
        is_view = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
        if computes and not is_view:
            name, written = str(func.overloadpacket), [*fresh, *changed]
            moved = sum(map(count_bytes, inputs)) + sum(map(count_bytes, written))
            first = (inputs or written)[0]
            self.operations.append(Operation(name, first.dtype, _count_flops(func, args, kwargs, result), moved))
        return result

    def _add(self, tensor: Tensor, group: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live:
            return
        index = len(self.storages)
        self.storages.append(Storage(storage.nbytes(), group))
        self.changes.append(index)

        def free(_: object) -> None:
            del self._live[key]
            self.changes.append(-1 - index)

        self._live[key] = weakref.ref(storage, free)


def count_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; a broadcast value counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _list_changed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among an operator's arguments that it writes to."""
    changed = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            changed += [each for each in tree_leaves(value) if isinstance(each, Tensor)]
    return changed


def _count_flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    name = str(packet)
    if name == "aten._scaled_dot_product_flash_attention_for_cpu":  # the CPU's are not in torch's table
        return int(sdpa_flop_count(*(each.shape for each in args[:3])))  # type: ignore[no-untyped-call]
    if name == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
        return int(sdpa_backward_flop_count(*(each.shape for each in args[:4])))  # type: ignore[no-untyped-call]
    return 0
