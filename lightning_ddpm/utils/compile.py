"""A network, compiled in place."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_ddpm.utils.errors import UserError, first_line


def compile_in_place(network: nn.Module, backend: str = "inductor", mode: str | None = None) -> None:
    """Have torch.compile turn a network into kernels when it is first called, with gradients and without.

    In place, so that weights keep their names; batches of whatever size share what was compiled.

    Args:
        network: called as network(x_t, t) or network(x_t, t, label).
        backend, mode: as of torch.compile.

    Raises:
        UserError: at the first call: the backend does not work on this machine.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # slow to import

    network.compile(backend=backend, mode=mode)
    compiled: Any = network._compiled_call_impl

    def call(*inputs: Tensor) -> Any:
        laid_out = [each.contiguous() for each in inputs]  # samplers repeat one t without memory of its own
        for each in laid_out:  # else another batch size would be another program
            torch._dynamo.maybe_mark_dynamic(each, 0)
        try:
            return compiled(*laid_out)
        except BackendCompilerFailed as error:
            cause = first_line(error.inner_exception)
            raise UserError(
                f"torch.compile cannot compile the network here: {cause}; on a processor it needs a C++ compiler, such "
                "as Debian's g++: mend that, or go without"
            ) from error

    network._compiled_call_impl = call


def check_backend(name: str) -> None:
    """Refuse a backend that torch.compile does not have."""
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise UserError(f"there is no backend {name!r} of torch.compile; there are {', '.join(known)}")


def restore_eager(network: nn.Module) -> None:
    """Undo it."""
    network._compiled_call_impl = None
