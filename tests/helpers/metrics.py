"""Sets of images and features for tests of metrics."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.metrics import FeatureExtractor, Statistics

CPU = torch.device("cpu")


def digits(start: int, stop: int) -> Tensor:
    """Return training images start..stop of the digits, (n, 1, 8, 8) uint8."""
    return Digits().open(Path("unused"), "train").__getitems__(range(start, stop))[0]


def in_memory(images: Tensor) -> MemoryDataset:
    """Return a dataset of these images, without labels."""
    return MemoryDataset(images, torch.full((len(images),), -1))


def make_features(n: int, width: int = 32, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Return n vectors of independent normal numbers with this mean."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


def make_statistics(d: int) -> Statistics:
    """Return the statistics of 50 such vectors of length d."""
    values = make_features(50, d).double().numpy()
    return Statistics(values.mean(0), np.cov(values.T), 50)


def make_noise_images(channels: int = 3, size: int = 32) -> Tensor:
    """Return two images of independent uniform pixels in 0..255, float32."""
    return torch.randint(0, 256, (2, channels, size, size), generator=torch.Generator().manual_seed(0)).float()


def load(extractor: FeatureExtractor) -> FeatureExtractor:
    """Load a feature network's weights and return it."""
    extractor.load()
    return extractor


def show_nothing(batches: Iterable[tuple[int, Tensor]], total: int) -> Iterator[Tensor]:
    """Pass batches on without showing progress."""
    yield from (batch for _, batch in batches)
