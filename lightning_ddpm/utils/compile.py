"""Compile a network in place."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_ddpm.utils import torch_internals
from lightning_ddpm.utils.errors import UserError, first_line


def compile_in_place(network: nn.Module, backend: str = "inductor", mode: str | None = None) -> None:
    """Have torch.compile compile a network at its first call, once with gradients and once without.

    Compiling in place keeps the names of the weights. Batches of all sizes share the compiled program.

    Args:
        network: called as network(x_t, t) or network(x_t, t, label).
        backend, mode: see torch.compile.

    Raises:
        UserError: the backend does not work on this machine; raised at the first call of the network.
    """
    compiler_error = torch_internals.get_compiler_error()
    network.compile(backend=backend, mode=mode)
    compiled = torch_internals.get_compiled_call(network)

    def call(*inputs: Tensor) -> Any:
        contiguous = [each.contiguous() for each in inputs]  # samplers pass t as an expanded view
        for each in contiguous:  # otherwise every batch size would be compiled on its own
            torch_internals.allow_any_batch_size(each)
        try:
            return compiled(*contiguous)
        except compiler_error as error:
            cause = first_line(getattr(error, "inner_exception", error))
            raise UserError(
                f"torch.compile cannot compile the network here: {cause}; on a CPU it needs a C++ compiler, such as "
                "Debian's g++: install one, or train without compilation"
            ) from error

    torch_internals.set_compiled_call(network, call)


def check_backend(name: str) -> None:
    """Raise UserError if torch.compile has no such backend."""
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise UserError(f"torch.compile has no backend {name!r}; it has {', '.join(known)}")


def restore_eager(network: nn.Module) -> None:
    """Undo :func:`compile_in_place`."""
    torch_internals.set_compiled_call(network, None)
