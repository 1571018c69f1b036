"""Lightning callbacks: averaged weights, evaluation, checkpoints, resumption, failures, and what a run reports.

Each line exports one public name and shows the file that documents it.
"""

from lightning_ddpm.callbacks.bits_per_dim import BitsPerDim as BitsPerDim
from lightning_ddpm.callbacks.channels_last import ChannelsLast as ChannelsLast
from lightning_ddpm.callbacks.checkpoints import Checkpoints as Checkpoints
from lightning_ddpm.callbacks.compile import Compile as Compile
from lightning_ddpm.callbacks.ema import EMA as EMA
from lightning_ddpm.callbacks.evaluation import Evaluation as Evaluation
from lightning_ddpm.callbacks.flow_likelihood import FlowLikelihood as FlowLikelihood
from lightning_ddpm.callbacks.learning_rate import LearningRate as LearningRate
from lightning_ddpm.callbacks.memorisation import Memorisation as Memorisation
from lightning_ddpm.callbacks.nonfinite import NonFinite as NonFinite
from lightning_ddpm.callbacks.pair_quality import PairQuality as PairQuality
from lightning_ddpm.callbacks.post_hoc_ema import PostHocEMA as PostHocEMA
from lightning_ddpm.callbacks.prediction_writer import PredictionWriter as PredictionWriter
from lightning_ddpm.callbacks.progress import ProgressLines as ProgressLines
from lightning_ddpm.callbacks.progress import ProgressRich as ProgressRich
from lightning_ddpm.callbacks.rank_exchange import RankExchange as RankExchange
from lightning_ddpm.callbacks.rank_failure import StopAllRanks as StopAllRanks
from lightning_ddpm.callbacks.reference_curves import ReferenceCurves as ReferenceCurves
from lightning_ddpm.callbacks.resume import Resume as Resume
from lightning_ddpm.callbacks.run_logger import RunLogger as RunLogger
from lightning_ddpm.callbacks.run_summary import RunSummary as RunSummary
from lightning_ddpm.callbacks.run_table import RunTable as RunTable
from lightning_ddpm.callbacks.sample_grid import SampleGrid as SampleGrid
from lightning_ddpm.callbacks.throughput import Throughput as Throughput
from lightning_ddpm.callbacks.trial_step import TrialStep as TrialStep
