"""How good generated images are."""

from lightning_ddpm.metrics.features import DigitsFeatures, FeatureExtractor, Inception
from lightning_ddpm.metrics.frechet import FrechetDistance

__all__ = ["DigitsFeatures", "FeatureExtractor", "FrechetDistance", "Inception"]
