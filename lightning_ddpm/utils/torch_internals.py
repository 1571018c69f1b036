"""Every use of torch's private API stands here, with the reason; tests fail in words when a release changes one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def disable_own_unscaling(optimizer: Optimizer) -> None:
    """Declare that an optimizer does not unscale gradients by itself in mixed precision.

    Lightning refuses to clip the gradients of a fused optimizer in mixed precision, because its step could unscale them
    itself, after the clipping. Without this flag Lightning unscales them before it clips, as for every other optimizer.
    There is no public way to choose.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def multiply_all(tensors: list[Tensor], factor: float | Tensor) -> None:
    """Multiply tensors in place by a factor, in one kernel; the public methods take one kernel for each tensor."""
    torch._foreach_mul_(tensors, torch.as_tensor(factor))


def interpolate_all(tensors: list[Tensor], towards: list[Tensor], share: float) -> None:
    """Move tensors in place by a share of the way to others, in one kernel, as :func:`multiply_all` does."""
    torch._foreach_lerp_(tensors, towards, share)


def identify_contents(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Return what changes when a tensor is replaced or written in place; autograd counts the writes privately."""
    return [(id(each), each._version) for each in tensors]


def get_compiled_call(network: nn.Module) -> Any:
    """Return the function that a network calls after ``network.compile()``."""
    return network._compiled_call_impl


def set_compiled_call(network: nn.Module, call: Callable[..., Any] | None) -> None:
    """Replace that function, or with ``None`` undo ``network.compile()``, which has no public inverse.

    ``torch.compile`` of a wrapped module would change the names of the weights; a hook cannot catch its exceptions.
    """
    network._compiled_call_impl = call


def allow_any_batch_size(tensor: Tensor) -> None:
    """Mark the first dimension as dynamic unless the compiled code depends on it.

    ``torch.compile(dynamic=True)`` would make all dimensions dynamic, and the public ``mark_dynamic`` raises an error
    where the code depends on the size.
    """
    torch._dynamo.maybe_mark_dynamic(tensor, 0)


def get_compiler_error() -> type[Exception]:
    """Return the exception of a backend that fails; torch exports it nowhere else. Its import is slow."""
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed


def create_summary_writer(folder: str, event_writer: Any) -> "SummaryWriter":
    """Return a ``SummaryWriter`` whose events go to ``event_writer``, which has the methods of an ``EventFileWriter``.

    Its own event writer cannot be chosen: its thread ends at the first error of the disk, and the clock names its file.
    """
    from torch.utils.tensorboard.writer import FileWriter, SummaryWriter  # slow to import

    class Files(FileWriter):
        def __init__(self) -> None:
            self.event_writer = event_writer

    class Writer(SummaryWriter):
        def _get_file_writer(self) -> Any:
            files: Any = Files() if self.file_writer is None else self.file_writer
            self.file_writer, self.all_writers = files, cast("Any", {folder: files})
            return files

    return Writer(folder)
