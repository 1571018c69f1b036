"""Every use of Lightning's private API stands here, with the reason; tests fail in words when a release changes one.

What a function cannot replace, :class:`~lightning_ddpm.callbacks.EMA` uses as a subclass of ``WeightAveraging``:
``_average_model``, ``_latest_update_step`` and ``_swap_models``.
"""

import subprocess
from inspect import signature
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def skip_signal_broadcast(trainer: Trainer) -> None:
    """Let training batches start without an exchange among the ranks; the program handles signals itself.

    Before every batch Lightning broadcasts whether the first rank received SIGTERM, and reads it from the device, which
    waits for all work on it. There is no option against this.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def set_ddp_defaults(trainer: Trainer) -> None:
    """Let DDP exchange gradients only, and without a copy; arguments that the user gave to the strategy stay.

    By default each forward pass broadcasts all buffers from the first rank, although those of this package are equal on
    all ranks; only BatchNorm's running statistics are not. A strategy that Lightning builds from its name takes no
    arguments.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    if not isinstance(strategy, DDPStrategy):
        return
    options = strategy._ddp_kwargs
    options.setdefault("gradient_as_bucket_view", True)
    if any(isinstance(each, _BatchNorm) and each.track_running_stats for each in module.modules()):
        return
    if not {"broadcast_buffers", "forward_sync_buffers"} & set(options):
        known = signature(DistributedDataParallel).parameters  # the first name is deprecated since torch 2.13
        options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the current batch's gradients wait for those of further batches before the optimizer step.

    No public attribute has this for the last batches of an epoch, where a step may take fewer batches.
    """
    return trainer.fit_loop._should_accumulate()


def is_validation_next(trainer: Trainer) -> bool:
    """Return whether a validation follows the current training batch.

    The rule depends on the epoch's length, the interval, the clock and an early stop; Lightning has it only here.
    """
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def get_validation_interval(trainer: Trainer) -> int | float | None:
    """Return ``val_check_interval``, or ``None`` where it is a time, for which the Trainer lacks the attribute."""
    return getattr(trainer, "val_check_interval", None)


def count_validation_interval_in_steps(trainer: Trainer) -> None:
    """Make an integer ``val_check_interval`` count optimizer steps, the unit of every other interval.

    Lightning counts batches, of which a step takes several with accumulated gradients, and fewer at the end of an
    epoch, and it validates inside a step. The rule stands in this method alone.
    """
    loop = trainer.fit_loop.epoch_loop
    count_batches = loop._should_check_val_fx

    def is_due(data_fetcher: Any) -> bool:
        interval, accumulate = get_validation_interval(trainer), trainer.accumulate_grad_batches
        if accumulate == 1 or not isinstance(interval, int) or trainer.should_stop:
            return count_batches(data_fetcher)
        within_epoch = -(-(loop.batch_idx + 1) // accumulate)
        step = trainer.global_step if trainer.check_val_every_n_epoch is None else within_epoch
        return loop._should_check_val_epoch() and not loop._should_accumulate() and step % interval == 0

    loop._should_check_val_fx = is_due  # type: ignore[method-assign]


def is_logging_step(trainer: Trainer) -> bool:
    """Return whether Lightning logs the current step, by ``log_every_n_steps`` and the steps since the run began."""
    return trainer._logger_connector.should_update_logs


def log_step_metrics(trainer: Trainer) -> None:
    """Send what was logged in the current step to the loggers now.

    Lightning does so after the callbacks of the batch; a process that ends in one of them would lose the values.
    """
    trainer._logger_connector.update_train_step_metrics()


def set_batches_done(checkpoint: dict[str, Any], done: int) -> None:
    """Change how many batches of its epoch a checkpoint has behind it, unless the epoch is over.

    The loops' part of a checkpoint has no public format, and Lightning no other way to start inside an epoch.

    Args:
        checkpoint: as Lightning loads it; changed in place.
        done: number of batches.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["is_last_batch"]:
        done = 10**9  # the epoch stays over, however many batches it has now
    shift = done - progress["current"]["ready"]
    progress["current"] = {name: count + shift for name, count in progress["current"].items()}


def list_child_processes(strategy: Any) -> list[subprocess.Popen[bytes]]:
    """Return the processes of the other ranks that a Trainer's or Fabric's strategy has started in this one.

    There is no public list of them.
    """
    return getattr(strategy.launcher, "procs", [])
