"""What happens beside training."""

from lightning_ddpm.callbacks.channels_last import ChannelsLast
from lightning_ddpm.callbacks.checkpoints import Checkpoints
from lightning_ddpm.callbacks.compile import Compile
from lightning_ddpm.callbacks.ema import EMA
from lightning_ddpm.callbacks.evaluation import Evaluation
from lightning_ddpm.callbacks.failure import EndTogether, NonFinite
from lightning_ddpm.callbacks.likelihood import BitsPerDim
from lightning_ddpm.callbacks.memorisation import Memorisation
from lightning_ddpm.callbacks.progress import ProgressLines, ProgressRich
from lightning_ddpm.callbacks.resume import Resume
from lightning_ddpm.callbacks.run import ImageWriter, RunSummary, Throughput
from lightning_ddpm.callbacks.sample_grid import SampleGrid
from lightning_ddpm.callbacks.tensorboard import RunLogger

__all__ = [
    "EMA",
    "BitsPerDim",
    "ChannelsLast",
    "Checkpoints",
    "Compile",
    "EndTogether",
    "Evaluation",
    "ImageWriter",
    "Memorisation",
    "NonFinite",
    "ProgressLines",
    "ProgressRich",
    "Resume",
    "RunLogger",
    "RunSummary",
    "SampleGrid",
    "Throughput",
]
