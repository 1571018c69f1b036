"""What happens beside training."""

from lightning_ddpm.callbacks.checkpoints import Checkpoints
from lightning_ddpm.callbacks.ema import EMA
from lightning_ddpm.callbacks.evaluation import Evaluation
from lightning_ddpm.callbacks.run import ImageWriter, ProgressLines, RunSummary, Throughput
from lightning_ddpm.callbacks.sample_grid import SampleGrid

__all__ = [
    "EMA",
    "Checkpoints",
    "Evaluation",
    "ImageWriter",
    "ProgressLines",
    "RunSummary",
    "SampleGrid",
    "Throughput",
]
