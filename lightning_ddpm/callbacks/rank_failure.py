"""Ends all ranks after an exception on one of them."""

import subprocess

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import first_line

LOST_RANK_ERRORS = ("gloo", "Application timeout caused pair closure")
"""What gloo's errors have in them when another process does not answer: mostly a path of its source, but not always."""


class StopAllRanks(Callback):
    """After an exception on the first rank, ends the ranks that it started, which could wait for it for ever.

    Lightning ends the first rank when one of those fails; torchrun and srun end all that they started. A rank that
    waited in vain for another, because its machine is cut off, says so.

    Args:
        seconds: that they have to end by themselves, for instance by the same exception.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit):
            return
        if isinstance(exception, torch.distributed.DistError) or any(
            each in str(exception) for each in LOST_RANK_ERRORS
        ):
            report(
                f"rank {trainer.global_rank} has lost another one after step {trainer.global_step} "
                f"({first_line(exception)}); once its machine is back, go on with --ckpt_path last"
            )
        for process in getattr(trainer.strategy.launcher, "procs", []):
            try:
                process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
