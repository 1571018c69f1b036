"""How good generated images are, and how likely real ones."""

from lightning_ddpm.metrics.bits_per_dim import BitsPerDimEstimate, ELBOSums
from lightning_ddpm.metrics.classifier_features import ClassifierFeatures
from lightning_ddpm.metrics.extractors import DigitsFeatures, DINOv2, FeatureExtractor, Inception, ModuleFeatures
from lightning_ddpm.metrics.frechet import FrechetDistance, Statistics, read_statistics, write_statistics
from lightning_ddpm.metrics.nearest_neighbours import (
    NearestNeighbours,
    NeighbourDistances,
    extract_features,
    find_nearest,
)
from lightning_ddpm.metrics.resize import TF1, Antialiased, Resize, TorchMetrics
from lightning_ddpm.metrics.suite import METRICS, MetricSuite, MetricValue, RequestedClasses

__all__ = [
    "METRICS",
    "TF1",
    "Antialiased",
    "BitsPerDimEstimate",
    "ClassifierFeatures",
    "DINOv2",
    "DigitsFeatures",
    "ELBOSums",
    "FeatureExtractor",
    "FrechetDistance",
    "Inception",
    "MetricSuite",
    "MetricValue",
    "ModuleFeatures",
    "NearestNeighbours",
    "NeighbourDistances",
    "RequestedClasses",
    "Resize",
    "Statistics",
    "TorchMetrics",
    "extract_features",
    "find_nearest",
    "read_statistics",
    "write_statistics",
]
