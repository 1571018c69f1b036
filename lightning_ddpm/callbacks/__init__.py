"""What happens beside training."""

from lightning_ddpm.callbacks.bits_per_dim import BitsPerDim
from lightning_ddpm.callbacks.channels_last import ChannelsLast
from lightning_ddpm.callbacks.checkpoints import Checkpoints
from lightning_ddpm.callbacks.compile import Compile
from lightning_ddpm.callbacks.ema import EMA
from lightning_ddpm.callbacks.evaluation import Evaluation
from lightning_ddpm.callbacks.memorisation import Memorisation
from lightning_ddpm.callbacks.nonfinite import NonFinite
from lightning_ddpm.callbacks.prediction_writer import PredictionWriter
from lightning_ddpm.callbacks.progress import ProgressLines, ProgressRich
from lightning_ddpm.callbacks.rank_failure import StopAllRanks
from lightning_ddpm.callbacks.resume import Resume
from lightning_ddpm.callbacks.run_logger import RunLogger
from lightning_ddpm.callbacks.run_summary import RunSummary
from lightning_ddpm.callbacks.sample_grid import SampleGrid
from lightning_ddpm.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "BitsPerDim",
    "ChannelsLast",
    "Checkpoints",
    "Compile",
    "Evaluation",
    "Memorisation",
    "NonFinite",
    "PredictionWriter",
    "ProgressLines",
    "ProgressRich",
    "Resume",
    "RunLogger",
    "RunSummary",
    "SampleGrid",
    "StopAllRanks",
    "Throughput",
]
