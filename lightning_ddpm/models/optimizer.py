"""What every optimizer step needs, whichever module is trained."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_ddpm.models.learning_rate import WarmUp
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.torch_internals import disable_own_unscaling, identify_contents

CAN_SKIP_STEPS = (torch.optim.Adam, torch.optim.AdamW)
"""torch's optimizers whose fused kernel can skip a step, even the first one; SGD's cannot, because it would initialise
the momentum from uninitialised memory."""


def build_optimizer(
    module: LightningModule, optimizer: Callable[..., Optimizer], lr_scheduler: Callable[[Optimizer], Any]
) -> dict[str, Any]:
    """Return what Lightning expects of configure_optimizers; the scheduler is stepped after every optimizer step.

    Raises:
        UserError: the optimizer or the scheduler refuses its arguments, or the scheduler ends before the run.
    """
    try:
        built: Any = optimizer(module.parameters())
    except ValueError as error:
        raise UserError(f"model.optimizer cannot be built: {first_line(error)}; change its arguments") from error
    disable_own_unscaling(built)
    built.register_load_state_dict_post_hook(normalize_optimizer_state)
    try:
        scheduler = lr_scheduler(built)
        steps = count_steps(module)
        if isinstance(scheduler, WarmUp):
            scheduler.set_length(steps)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"model.lr_scheduler cannot be built: {first_line(error)}; change its arguments") from error
    end = getattr(scheduler, "total_steps", math.inf)  # OneCycleLR's step after the last one is an error
    if end < steps < math.inf:
        raise UserError(
            f"model.lr_scheduler has total_steps {end}, and the run has {steps:.0f} steps: set its total_steps to "
            f"{steps:.0f}, or trainer.max_steps to {end}"
        )
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def count_steps(module: LightningModule) -> float:
    """Return the number of optimizer steps of the module's run; infinite if it has no end, or there is no run."""
    try:
        trainer = module.trainer
    except RuntimeError:  # not in a Trainer
        return math.inf
    return trainer.max_steps if trainer.max_steps > 0 else float(trainer.estimated_stepping_batches)


class MatrixDecayAdamW(torch.optim.AdamW):
    """AdamW that decays matrices and convolutions only, not biases and the scales and shifts of norms.

    Those are the parameters of one dimension, which have no scale that a decay could keep small without changing the
    function. Loshchilov & Hutter 2019 (arXiv:1711.05101).

    Args:
        params: the parameters.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        weight_decay: of parameters with two or more dimensions.
        fused: whether one kernel takes a step of all parameters.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        fused: bool = True,
    ) -> None:
        every = list(params)
        groups: list[dict[str, Any]] = [
            {"params": [each for each in every if each.ndim >= 2], "weight_decay": weight_decay},
            {"params": [each for each in every if each.ndim < 2], "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], lr, betas, eps, weight_decay, fused=fused)


def spread_nonfinite(loss: Tensor) -> Tensor:
    """Return the loss, as NaN if it is infinite, with gradients that are not finite unless the loss is.

    With several ranks the gradients are averaged, so that every rank notices and all skip the step.
    """
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)


def collect_gradients(optimizer: Optimizer) -> list[Tensor]:
    """Return the gradients of all parameters that have one; iterating over a module's layers takes ten times longer."""
    return [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]


def measure_gradient_norm(optimizer: Optimizer) -> Tensor:
    """Return the norm of all gradients, (), and keep it with the optimizer for :func:`get_gradient_norm`."""
    gradients = collect_gradients(optimizer)
    norm = nn.utils.get_total_norm(gradients)
    optimizer.gradient_norm = norm, identify_contents(gradients)  # type: ignore[attr-defined]
    return norm


def get_gradient_norm(optimizer: Optimizer) -> Tensor:
    """Return the norm of all gradients, (): the one measured in this step, unless they have changed since."""
    norm, contents = getattr(optimizer, "gradient_norm", (None, []))
    if norm is None or contents != identify_contents(collect_gradients(optimizer)):
        return measure_gradient_norm(optimizer)
    return norm  # type: ignore[no-any-return]


def clip_gradients(
    module: LightningModule,
    optimizer: Optimizer,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> None:
    """Clip the gradients as Lightning does, by the norm of :func:`get_gradient_norm`, and forget that norm.

    It is a module's ``configure_gradient_clipping``, which Lightning calls once before each optimizer step.
    """
    if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
        weights = [each for group in optimizer.param_groups for each in group["params"]]
        nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, get_gradient_norm(optimizer))
    else:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
    optimizer.gradient_norm = None, []  # type: ignore[attr-defined]


def skip_step_where(optimizer: Optimizer, where: Tensor) -> bool:
    """Make the next step change neither weights nor optimizer state if ``where`` (), bool, is true.

    The host does not wait for its value: a fused kernel reads it on the device, as it reads a gradient scaler's.

    Returns:
        Whether the optimizer supports this; if not, nothing is changed.
    """
    fused = isinstance(optimizer, CAN_SKIP_STEPS) and all(group.get("fused") for group in optimizer.param_groups)
    if not fused or where.device.type not in ("cpu", "cuda"):  # the kernel for Apple's GPUs ignores it
        return False
    optimizer.found_inf = where.float()  # type: ignore[attr-defined]
    return True


def normalize_optimizer_state(optimizer: Optimizer) -> None:
    """Convert the optimizer's state to the memory layout and device that its weights and settings need.

    Call it after the weights, the settings or the state have changed. A fused kernel reads memory in its order: moments
    in another layout would be applied to the wrong weights. It also keeps the step count on the weights' device, where
    other optimizers keep it on the host.
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
    """Convert tensors in place to the memory layout of other tensors of the same shapes."""
    for mine, theirs in zip(tensors, like, strict=True):
        if mine.stride() != theirs.stride():
            mine.data = torch.empty_like(theirs, dtype=mine.dtype, requires_grad=False).copy_(mine.data)


class DeferredRead:
    """A copy of a tensor to the host that does not wait for the device, to be read after the device got other work.

    Args:
        values: the tensor, which the device may not have computed yet.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=values.is_cuda)
        self._copied = torch.Event(values.device) if values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> list[Any]:
        """Return the flattened values; wait until they have been copied."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.flatten().tolist()
