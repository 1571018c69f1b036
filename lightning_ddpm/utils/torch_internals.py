"""Every use of torch's private API stands here, with the reason; tests fail in words when a release changes one."""

from torch.optim import Optimizer


def disable_own_unscaling(optimizer: Optimizer) -> None:
    """Declare that an optimizer does not unscale gradients by itself in mixed precision.

    Lightning refuses to clip the gradients of a fused optimizer in mixed precision, because its step could unscale them
    itself, after the clipping. Without this flag Lightning unscales them before it clips, as for every other optimizer.
    There is no public way to choose.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
