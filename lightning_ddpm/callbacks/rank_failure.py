"""Ends all ranks after an exception on one of them."""

import subprocess

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import first_line
from lightning_ddpm.utils.lightning_internals import list_child_processes

GLOO_ERRORS = ("gloo", "Application timeout caused pair closure")
"""Text of gloo's errors when another process does not answer: mostly a path of its source, but not always."""


class StopAllRanks(Callback):
    """Ends the ranks that the first rank started after an exception on it; they could wait for it for ever.

    Lightning ends the first rank when one of the others fails; torchrun and srun end all ranks that they started. A
    rank that loses the connection to another, for instance because a machine is cut off, reports it.

    Args:
        seconds: time that the ranks have to end by themselves, for instance by the same exception.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit):
            return
        if _is_lost_connection(exception):
            report(
                f"rank {trainer.global_rank} lost the connection to another rank after step {trainer.global_step} "
                f"({first_line(exception)}); once its machine is back, resume with --ckpt_path last"
            )
        for process in list_child_processes(trainer.strategy):
            try:
                process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                process.kill()


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether another rank did not answer.

    NCCL and the store raise ``DistError``. Gloo raises a plain ``RuntimeError`` (torch 2.6 to 2.14), so that only its
    text distinguishes it.
    """
    return isinstance(error, torch.distributed.DistError) or any(each in str(error) for each in GLOO_ERRORS)
