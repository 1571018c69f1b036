"""Metrics of generated images, and the likelihood of real ones.

Each line exports one name that a config or another folder uses, and shows the file that documents it.
"""

from lightning_ddpm.metrics.bits_per_dim import BitsPerDimEstimate as BitsPerDimEstimate
from lightning_ddpm.metrics.classifier_features import ClassifierFeatures as ClassifierFeatures
from lightning_ddpm.metrics.extractors import DigitsFeatures as DigitsFeatures
from lightning_ddpm.metrics.extractors import DINOv2 as DINOv2
from lightning_ddpm.metrics.extractors import FeatureExtractor as FeatureExtractor
from lightning_ddpm.metrics.extractors import ModuleFeatures as ModuleFeatures
from lightning_ddpm.metrics.frechet import FrechetDistance as FrechetDistance
from lightning_ddpm.metrics.frechet import Statistics as Statistics
from lightning_ddpm.metrics.frechet import read_statistics as read_statistics
from lightning_ddpm.metrics.frechet import write_statistics as write_statistics
from lightning_ddpm.metrics.inception import Inception as Inception
from lightning_ddpm.metrics.nearest_neighbours import NeighbourDistances as NeighbourDistances
from lightning_ddpm.metrics.nearest_neighbours import extract_features as extract_features
from lightning_ddpm.metrics.nearest_neighbours import find_nearest as find_nearest
from lightning_ddpm.metrics.resize import TF1 as TF1
from lightning_ddpm.metrics.resize import Antialiased as Antialiased
from lightning_ddpm.metrics.resize import Resize as Resize
from lightning_ddpm.metrics.resize import TorchMetrics as TorchMetrics
from lightning_ddpm.metrics.scores import MetricValue as MetricValue
from lightning_ddpm.metrics.scores import RequestedClasses as RequestedClasses
from lightning_ddpm.metrics.suite import METRICS as METRICS
from lightning_ddpm.metrics.suite import MetricSuite as MetricSuite
