"""Compile a network in place."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_ddpm.utils import torch_internals
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.errors import UserError, first_line

Mode = Literal["default", "reduce-overhead", "max-autotune"]
"""What torch.compile optimises for, in its own words."""


def compile_in_place(network: nn.Module, backend: str = "inductor", mode: Mode | None = None) -> None:
    """Have torch.compile compile a network at its first call, once with gradients and once without.

    Compiling in place keeps the names of the weights. With gradients every batch size is compiled on its own: the
    compiler chooses the layout of convolutions only where all sizes are known. Without, all sizes share one program.
    Images enter in the memory format of the convolutions' weights.

    Args:
        network: called as network(x_t, t) or network(x_t, t, condition), also with interval=interval.
        backend, mode: see torch.compile.

    Raises:
        UserError: the backend does not work on this machine; raised at the first call of the network.
    """
    compiler_error = torch_internals.get_compiler_error()
    calls: dict[bool, Callable[..., Any]] = {}
    for has_gradients, dynamic in ((True, False), (False, None)):
        network.compile(backend=backend, mode=mode, dynamic=dynamic)
        calls[has_gradients] = torch_internals.get_compiled_call(network)
    layouts: list[torch.memory_format] = []  # of the images; read from the weights at the first call

    def arrange(each: Tensor) -> Tensor:
        # samplers pass t as an expanded view
        each = each.contiguous(memory_format=layouts[0] if each.ndim == 4 else torch.contiguous_format)
        if not torch.is_grad_enabled():  # otherwise every batch size would be compiled on its own
            torch_internals.allow_any_batch_size(each)
        return each

    def call(*inputs: Tensor | Condition, **interval: Tensor) -> Any:
        if not layouts:
            layouts.append(get_memory_format(network))
        has_gradients = torch.is_grad_enabled()
        arranged = [each.map(arrange) if isinstance(each, Condition) else arrange(each) for each in inputs]
        interval = {name: arrange(each) for name, each in interval.items()}
        if not has_gradients and uses_graphs(mode) and not network.training:
            begin_step()
        try:
            output = calls[has_gradients](*arranged, **interval)
        except compiler_error as error:
            cause = first_line(getattr(error, "inner_exception", error))
            raise UserError(
                f"torch.compile cannot compile the network here: {cause}; on a CPU it needs a C++ compiler, such as "
                "Debian's g++: install one, or train without compilation"
            ) from error
        # a graph writes its output to the same memory at every call, and samplers may keep it
        return output.clone() if uses_graphs(mode) and isinstance(output, Tensor) else output

    torch_internals.set_compiled_call(network, call)


def uses_graphs(mode: Mode | None) -> bool:
    """Return whether programs of this mode are replayed as CUDA graphs, whose results live until the next step."""
    return mode in ("reduce-overhead", "max-autotune")


def begin_step() -> None:
    """Let CUDA graphs use the memory of all results again that programs returned before."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def get_memory_format(network: nn.Module) -> torch.memory_format:
    """Return ``torch.channels_last`` if a network's convolutions have their weights in it."""
    last = torch.channels_last
    convolutions = [each for each in network.parameters() if each.ndim == 4 and not each.is_contiguous()]
    is_last = bool(convolutions) and all(each.is_contiguous(memory_format=last) for each in convolutions)
    return last if is_last else torch.contiguous_format


def check_backend(name: str) -> None:
    """Raise UserError if torch.compile has no such backend."""
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise UserError(f"torch.compile has no backend {name!r}; it has {', '.join(known)}")


def restore_eager(network: nn.Module) -> None:
    """Undo :func:`compile_in_place`."""
    torch_internals.set_compiled_call(network, None)
