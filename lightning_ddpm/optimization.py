"""What every step of an optimizer needs, whatever is trained."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
"""torch's optimizers that have one kernel for a whole step."""


def configured(
    module: LightningModule, optimizer: Callable[..., Optimizer], lr_scheduler: Callable[[Optimizer], Any]
) -> dict[str, Any]:
    """What Lightning's configure_optimizers returns: the schedule is stepped after every optimizer step.

    Lightning refuses to clip the gradients of a fused optimizer in mixed precision, because that could unscale them by
    itself, unseen. Told that it does not, Lightning unscales them before it clips, as for every other optimizer.
    """
    built: Any = optimizer(module.parameters())
    built._step_supports_amp_scaling = False
    return {"optimizer": built, "lr_scheduler": {"scheduler": lr_scheduler(built), "interval": "step"}}


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """Of all its parameters that have one; a walk over its lists, which a module's layers would take ten times."""
    return [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]


def leave_out(optimizer: Optimizer, where: Tensor) -> bool:
    """Have the next step change neither weights nor the optimizer's state where ``where`` (), bool, is true.

    Nobody waits for its value: a fused kernel reads it on the device, as it does a gradient scaler's.

    Returns:
        Whether the optimizer can; if not, nothing is asked of it.
    """
    if not isinstance(optimizer, FUSED) or not all(group.get("fused") for group in optimizer.param_groups):
        return False
    told: Any = optimizer
    told.found_inf = where.float()
    return True


class Later:
    """Numbers that a device has yet to compute, on their way to the host: to be read without a wait once it has done
    something else meanwhile.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=True)
        self._there = torch.Event(values.device) if values.is_cuda else None
        if self._there is not None:
            self._there.record()

    def read(self) -> list[Any]:
        """The numbers, as soon as they are there."""
        if self._there is not None:
            self._there.synchronize()
        found: list[Any] = self._values.flatten().tolist()
        return found
