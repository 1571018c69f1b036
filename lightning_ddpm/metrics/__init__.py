"""How good generated images are, and how likely real ones."""

from lightning_ddpm.metrics.classifier import ClassifierFeatures
from lightning_ddpm.metrics.features import DigitsFeatures, DINOv2, FeatureExtractor, Inception, ModuleFeatures
from lightning_ddpm.metrics.figures import METRICS, Classes, Figures, Measured
from lightning_ddpm.metrics.frechet import FrechetDistance
from lightning_ddpm.metrics.likelihood import BoundSums, Likelihood
from lightning_ddpm.metrics.memorisation import Nearest, Proximity, embed, proximity
from lightning_ddpm.metrics.resize import TF1, Antialiased, Resize, TorchMetrics
from lightning_ddpm.metrics.statistics import Statistics, read_statistics, write_statistics

__all__ = [
    "METRICS",
    "TF1",
    "Antialiased",
    "BoundSums",
    "Classes",
    "ClassifierFeatures",
    "DINOv2",
    "DigitsFeatures",
    "FeatureExtractor",
    "Figures",
    "FrechetDistance",
    "Inception",
    "Likelihood",
    "Measured",
    "ModuleFeatures",
    "Nearest",
    "Proximity",
    "Resize",
    "Statistics",
    "TorchMetrics",
    "embed",
    "proximity",
    "read_statistics",
    "write_statistics",
]
