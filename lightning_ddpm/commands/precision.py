"""``--trainer.precision auto``: bf16-mixed where it is measured to be faster, else 32-true."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lsf import LSFEnvironment
from lightning_fabric.plugins.environments.mpi import MPIEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lightning_ddpm.commands.run_folder import is_first_rank
from lightning_ddpm.utils.devices import name_device
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.precision_probe import measure_bf16_speedup

AUTO = "auto"
DEFAULT = "32-true"
WORTHWHILE = 1.1
"""The least ratio for bf16-mixed: below, the rounding and the scatter of the measurement outweigh the gain."""
VARIABLE = "LIGHTNING_DDPM_PRECISION"
"""Passes the first rank's choice to the ranks that Lightning starts from it."""
LAUNCHERS: dict[str, type[ClusterEnvironment]] = {
    "torchrun": TorchElasticEnvironment,
    "SLURM": SLURMEnvironment,
    "MPI": MPIEnvironment,
    "LSF": LSFEnvironment,
}
GIVE = "give --trainer.precision bf16-mixed or 32-true"


def choose_precision(
    trainer: Namespace,
    command: str,
    checkpoint: Mapping[str, Any] | None,
    resumes: bool,
    measure: Callable[[torch.device], float] = measure_bf16_speedup,
) -> str | None:
    """Replace ``auto`` in the Trainer's options by a precision; do nothing where another one is given.

    A run that is resumed keeps its precision, and what is not training takes that of the checkpoint's run. Only the
    first rank of a new run measures, and passes its choice to the ranks that Lightning starts. Ranks that another
    launcher starts could choose differently and are refused.

    Args:
        trainer: the Trainer's options; ``precision`` is changed.
        command: fit, validate, test or predict.
        checkpoint: what it starts from.
        resumes: whether ``fit`` continues the checkpoint's run.
        measure: returns how many times as fast as float32 bfloat16 is on a device.

    Returns:
        a sentence about the choice, ``None`` where there was none.

    Raises:
        UserError: the precision cannot be chosen.
    """
    if trainer.precision != AUTO:
        return None
    if checkpoint is not None and (resumes or command != "fit"):
        trainer.precision = _get_precision(checkpoint, command)
        return f"precision {trainer.precision}, as in the checkpoint's run"
    if not is_first_rank() and VARIABLE in os.environ:
        trainer.precision = os.environ[VARIABLE]
        return None
    _check_launcher(trainer)
    device = _find_device(trainer)
    if device is None:
        trainer.precision, reason = DEFAULT, "bfloat16 is measured on CPUs and CUDA GPUs only"
    else:
        ratio = measure(device)
        trainer.precision = "bf16-mixed" if ratio >= WORTHWHILE else DEFAULT
        reason = f"a step in bfloat16 is {ratio:.3g} times as fast as in float32 on {name_device(device)}"
        reason += f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    os.environ[VARIABLE] = trainer.precision
    return f"precision {trainer.precision}, by measurement: {reason}" if device else f"precision {DEFAULT}: {reason}"


def _get_precision(checkpoint: Mapping[str, Any], command: str) -> str:
    """Return the precision of the checkpoint's run."""
    config = checkpoint.get("callbacks", {}).get("Resume", {}).get("config")
    if config is None:
        raise UserError(
            f"--trainer.precision auto takes the precision of the checkpoint's run in {command}, and this checkpoint "
            f"does not name it; {GIVE}"
        )
    return str((config.get("trainer") or {}).get("precision") or DEFAULT)


def _check_launcher(trainer: Namespace) -> None:
    """Refuse ranks that are not started by Lightning, because each would measure for itself."""
    found = [name for name, each in LAUNCHERS.items() if each.detect() and each().world_size() > 1]
    if found or trainer.num_nodes > 1:
        by = f"that {found[0]} starts" if found else f"on {trainer.num_nodes} nodes"
        raise UserError(
            f"--trainer.precision auto is measured by one process, and processes {by} might choose differently; {GIVE}"
        )


def _find_device(trainer: Namespace) -> torch.device | None:
    """Return the device to measure: the first one of the run, ``None`` if it is neither a CPU nor a CUDA GPU."""
    accelerator = str(trainer.accelerator).lower()
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        devices: Any = trainer.devices
        if isinstance(devices, str) and "," in devices:
            devices = [int(each) for each in devices.split(",") if each.strip().isdigit()]
        return torch.device("cuda", devices[0] if isinstance(devices, list) and devices else 0)
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        return torch.device("cpu")
    return None
