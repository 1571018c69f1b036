"""How good generated images are, and how likely real ones."""

from lightning_ddpm.metrics.features import DigitsFeatures, FeatureExtractor, Inception
from lightning_ddpm.metrics.frechet import FrechetDistance
from lightning_ddpm.metrics.likelihood import BoundSums, Likelihood

__all__ = ["BoundSums", "DigitsFeatures", "FeatureExtractor", "FrechetDistance", "Inception", "Likelihood"]
