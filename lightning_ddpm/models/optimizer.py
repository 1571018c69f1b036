"""What every step of an optimizer needs, whatever is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

CAN_SKIP_STEPS = (torch.optim.Adam, torch.optim.AdamW)
"""torch's optimizers whose fused kernel can leave a step out, the first one too: SGD's momentum begins with what is in
memory then."""


def build_optimizer(
    module: LightningModule, optimizer: Callable[..., Optimizer], lr_scheduler: Callable[[Optimizer], Any]
) -> dict[str, Any]:
    """What Lightning's configure_optimizers returns: the schedule is stepped after every optimizer step.

    Lightning refuses to clip the gradients of a fused optimizer in mixed precision, because that could unscale them by
    itself, unseen. Told that it does not, Lightning unscales them before it clips, as for every other optimizer.
    """
    built: Any = optimizer(module.parameters())
    built._step_supports_amp_scaling = False
    built.register_load_state_dict_post_hook(normalize_optimizer_state)
    return {"optimizer": built, "lr_scheduler": {"scheduler": lr_scheduler(built), "interval": "step"}}


def collect_gradients(optimizer: Optimizer) -> list[Tensor]:
    """Of all its parameters that have one; a walk over its lists, which a module's layers would take ten times."""
    return [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]


def skip_step_where(optimizer: Optimizer, where: Tensor) -> bool:
    """Have the next step change neither weights nor the optimizer's state where ``where`` (), bool, is true.

    Nobody waits for its value: a fused kernel reads it on the device, as it does a gradient scaler's.

    Returns:
        Whether the optimizer can; if not, nothing is asked of it.
    """
    fused = isinstance(optimizer, CAN_SKIP_STEPS) and all(group.get("fused") for group in optimizer.param_groups)
    if not fused or where.device.type not in ("cpu", "cuda"):  # Apple's kernel does not look
        return False
    told: Any = optimizer
    told.found_inf = where.float()
    return True


def normalize_optimizer_state(optimizer: Optimizer) -> None:
    """Have its state as its weights and arguments want it, after either has changed or the state was loaded.

    A fused kernel goes through memory, whatever lies there: moments of weights in another layout would be others'. It
    counts steps on the weights' device, where another optimizer counts on the host.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if name == "step" and isinstance(value, Tensor):
                    on_device = group.get("fused") or group.get("capturable")
                    state[name] = value.to(weight.device if on_device else "cpu")
                elif isinstance(value, Tensor) and value.shape == weight.shape:
                    match_memory_format([value], [weight])


def match_memory_format(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> None:
    """Bring tensors into the memory layout of others of the same shapes, in place."""
    for mine, theirs in zip(tensors, like, strict=True):
        if mine.stride() != theirs.stride():
            mine.data = torch.empty_like(theirs, dtype=mine.dtype, requires_grad=False).copy_(mine.data)


class DeferredRead:
    """Numbers that a device has yet to compute, on their way to the host: to be read without a wait once it has done
    something else meanwhile.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=values.is_cuda)
        self._there = torch.Event(values.device) if values.is_cuda else None
        if self._there is not None:
            self._there.record()

    def read(self) -> list[Any]:
        """The numbers, as soon as they are there."""
        if self._there is not None:
            self._there.synchronize()
        found: list[Any] = self._values.flatten().tolist()
        return found
