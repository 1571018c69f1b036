"""The Fréchet distance between generated images and a data set, on any number of ranks.

torchmetrics does the arithmetic, in float64. What is added here: reference statistics that are computed once and kept.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.files import cache_folder, write_whole
from lightning_ddpm.metrics.features import FeatureExtractor

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks, on all ranks."""

Statistics = tuple[np.ndarray, np.ndarray, int]
"""Mean (d,), covariance (d, d) and number of feature vectors."""

BATCH = 64
"""Images that go through a feature network at a time: fixed, because it changes the rounding of features."""


class FrechetDistance:
    """Fréchet distance of uint8 images to a reference set.

    Args:
        extractor: loaded feature network.
        device: where features are computed.
    """

    def __init__(self, extractor: FeatureExtractor, device: torch.device) -> None:
        self.extractor = extractor
        self.device = device
        self.metric = FrechetInceptionDistance(feature=extractor.to(device), reset_real_features=False)
        # Statistics are sums in float64, which not every accelerator has: they stay on the CPU there.
        self.metric.to(device if device.type != "mps" else "cpu")

    def set_reference(
        self, data: ImageDataset, reduce: Reduce, rank: int, world: int, progress: Callable[..., Iterator[Tensor]]
    ) -> str:
        """Take the statistics of a data set from the cache, or compute them on all ranks together and cache them.

        Args:
            data: the images, as they are.
            reduce: sums a tensor over ranks.
            rank, world: which rank of how many.
            progress: shows (count, batch) pairs passing by.

        Returns:
            Where the statistics are kept, in words.
        """
        path = self.cache_path(data)
        cached = _read(path)
        if int(reduce(torch.tensor(float(cached is not None), device=self.device))) < world:
            cached = self._statistics(data, reduce, rank, world, progress)
            mu, sigma, n = cached
            if rank == 0:
                write_whole(path, lambda file: np.savez(file, mu=mu, sigma=sigma, n=n))
        assert cached is not None
        mu, sigma, n = cached
        if rank == 0:  # torchmetrics sums over ranks: the reference must be counted once
            mean, cov = torch.from_numpy(mu), torch.from_numpy(sigma)
            self.metric.real_features_sum.copy_(n * mean)
            self.metric.real_features_cov_sum.copy_((n - 1) * cov + n * torch.outer(mean, mean))
            self.metric.real_features_num_samples.fill_(n)
        return f"statistics of {n} images in {path}"

    def cache_path(self, data: ImageDataset) -> Path:
        """The file for this data set under this extractor: mu, sigma (as pytorch-fid writes them) and n."""
        key = hashlib.sha256(f"{data.fingerprint} {self.extractor.protocol} {BATCH}".encode()).hexdigest()[:16]
        return cache_folder() / "reference" / f"{self.extractor.metric}-{key}.npz"

    def _statistics(
        self, data: ImageDataset, reduce: Reduce, rank: int, world: int, progress: Callable[..., Iterator[Tensor]]
    ) -> Statistics:
        starts = range(0, len(data), BATCH)[rank::world]
        batches = (range(start, min(start + BATCH, len(data))) for start in starts)
        read = ((len(batch), data.__getitems__(batch)[0]) for batch in batches)
        total = torch.zeros(self.extractor.num_features, dtype=torch.float64)
        products = torch.zeros(self.extractor.num_features, self.extractor.num_features, dtype=torch.float64)
        with torch.no_grad():
            for pixels in progress(read, -(-len(data) // world)):
                features = self.extractor(pixels.to(self.device)).cpu().double()
                total += features.sum(0)
                products += features.T @ features
        total, products = (reduce(each.to(self.metric.device)).cpu() for each in (total, products))
        n = len(data)
        mean = total / n
        return mean.numpy(), ((products - n * torch.outer(mean, mean)) / (n - 1)).numpy(), n

    def update(self, pixels: Tensor) -> None:
        """Add generated images, (b, c, h, w) uint8, in batches of the fixed size."""
        for batch in torch.split(pixels.to(self.device), BATCH):
            self.metric.update(batch, real=False)

    def compute(self) -> float:
        """The distance over the images of all ranks; then forget them and keep the reference."""
        value = float(self.metric.compute())
        self.metric.reset()
        return value


def _read(path: Path) -> Statistics | None:
    """What the cache has; nothing where it is missing or damaged: it is computed again then."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return file["mu"], file["sigma"], int(file["n"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
