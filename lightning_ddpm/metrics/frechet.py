"""The Fréchet distance between generated images and a dataset, on any number of ranks.

torchmetrics does the arithmetic, in float64. This file adds reference statistics that are computed once and cached.
"""

import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics.extractors import FeatureExtractor, compute_features
from lightning_ddpm.metrics.image_batches import BATCH, count_workers, iterate_shard
from lightning_ddpm.utils.cache import find_cached, read_cached, write_cached
from lightning_ddpm.utils.console import format_duration, report
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import write_atomically
from lightning_ddpm.utils.hashing import make_cache_key
from lightning_ddpm.utils.npz import list_npz, read_npz
from lightning_ddpm.utils.precision import FLOAT32

Sink = Callable[[int, Tensor], object]
"""Receives the features (b, d) of images start, start + 1, ..."""

Progress = Callable[..., Iterator[tuple[int, Tensor]]]
"""(pairs (count, batch), total) -> the batches; shows how many of the total are done."""

MANY = 5000
"""Number of images from which the cost of reference statistics is printed before they are computed."""


class Statistics(NamedTuple):
    """The statistics of a set of images that the Fréchet distance compares.

    Attributes:
        mu: (d,) float64, mean of the features.
        sigma: (d, d) float64, their covariance.
        n: number of images; 0 where it is unknown.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int


class FrechetDistance:
    """Fréchet distance between images and a reference set.

    Args:
        extractor: loaded feature network.
        device: where features are computed.
    """

    def __init__(self, extractor: FeatureExtractor, device: torch.device) -> None:
        self.extractor, self.device = extractor, device
        extractor.to(device)
        self.metric = FrechetInceptionDistance(
            feature=_PassThrough(extractor.num_features), reset_real_features=False, sync_on_compute=False
        )
        # Statistics are sums in float64, which not every accelerator has: without it they stay on the CPU.
        self.metric.to(device if device.type != "mps" else "cpu")
        # the dtype of the features: torchmetrics sets it at the first update, which a rank without images never gets
        self.metric.orig_dtype = torch.float32

    def set_reference(
        self, data: ImageDataset, ranks: Ranks, progress: Progress, sink: Sink | None = None, workers: int = 0
    ) -> str:
        """Set the reference to the statistics of a dataset, from the cache or computed on all ranks and then cached.

        Args:
            data: the images, not augmented.
            ranks: the processes that share the work.
            progress: shows how many images are done.
            sink: receives this rank's features, too, which are computed even if the statistics are cached.
            workers: number of processes of each rank that decode image files.

        Returns:
            A description with the number of images and, if there is one, the cached file.
        """
        path = self.get_cache_path(data)
        cached = None if sink else _read_cached(path)
        if int(ranks.reduce(torch.tensor(float(cached is not None), device=self.device))) < ranks.world_size:
            cached = self._compute_reference(data, ranks, progress, sink, workers)
            if ranks.is_first:
                write_cached(path, _format_statistics(cached))
        assert cached is not None
        self.set_reference_statistics(cached, ranks)
        return f"statistics of {cached.n} images" + (f" in {path}" if path and path.is_file() else "")

    def set_reference_statistics(self, reference: Statistics, ranks: Ranks) -> None:
        """Set the reference to these statistics; UserError if they are those of another number of features."""
        mu, sigma, n = reference
        if len(mu) != self.extractor.num_features:
            raise UserError(
                f"the reference has statistics of {len(mu)} features and {self.extractor.protocol} has "
                f"{self.extractor.num_features}; they are those of another network: compute them again"
            )
        if ranks.is_first:  # torchmetrics sums over ranks: the reference must be counted once
            n = n or 2  # any n will do: the distance depends only on the mean and covariance of these sums
            mean, cov = torch.from_numpy(mu), torch.from_numpy(sigma)
            self.metric.real_features_sum.copy_(n * mean)
            self.metric.real_features_cov_sum.copy_((n - 1) * cov + n * torch.outer(mean, mean))
            self.metric.real_features_num_samples.fill_(n)

    def get_cache_path(self, data: ImageDataset) -> Path | None:
        """Return the cache file of this dataset and extractor, if there is a cache: mu, sigma and n in an npz file."""
        key = make_cache_key(f"{data.fingerprint} {self.extractor.protocol} {BATCH} {FLOAT32}")
        return find_cached(f"reference/{self.extractor.metric}-{key}.npz")

    def _compute_reference(
        self, data: ImageDataset, ranks: Ranks, progress: Progress, sink: Sink | None, workers: int
    ) -> Statistics:
        d, device = self.extractor.num_features, self.metric.device
        total = torch.zeros(d, dtype=torch.float64, device=device)
        products = torch.zeros(d, d, dtype=torch.float64, device=device)
        with torch.no_grad():
            if len(data) > MANY and ranks.is_first:
                report(self._describe_cost(data, ranks, workers))
            shard = iterate_shard(data, len(data), ranks, workers)
            for start, pixels in progress(shard, ranks.share(len(data))):
                features = compute_features(self.extractor, pixels, self.device)[0]
                if sink:
                    sink(start, features)
                features = features.to(device).double()
                total += features.sum(0)
                products += features.T @ features
        return self._from_sums(ranks, total, products, len(data))

    def _describe_cost(self, data: ImageDataset, ranks: Ranks, workers: int) -> str:
        """Describe the cost of the statistics, estimated from one batch of images and the features of another."""
        started = time.monotonic()
        pixels = data.__getitems__(range(BATCH))[0]
        reading = time.monotonic() - started
        for _ in range(2):  # the second one is timed
            started = time.monotonic()
            float(compute_features(self.extractor, pixels, self.device)[0].sum())  # waits for the device
        features, workers = time.monotonic() - started, count_workers(data, workers)
        each = max(reading / workers, features) if workers else reading + features
        seconds = format_duration(each * ranks.share(math.ceil(len(data) / BATCH)))
        by = f"on {ranks.world_size} ranks, " if ranks.world_size > 1 else ""
        by += f"with {workers} processes that decode" if workers else "decoded in one process"
        return f"reference: {len(data):,} images by {self.extractor.protocol}, about {seconds} {by}; then cached"

    def _from_sums(self, ranks: Ranks, total: Tensor, products: Tensor, n: int) -> Statistics:
        """Return the statistics of all ranks, given this rank's sums and the number of images of all ranks."""
        total, products = (ranks.reduce(each.to(self.metric.device)).cpu() for each in (total, products))
        mean = total / n
        return Statistics(mean.numpy(), ((products - n * torch.outer(mean, mean)) / (n - 1)).numpy(), n)

    def update(self, pixels: Tensor) -> None:
        """Add generated images, (b, c, h, w) in their own values, in batches of the fixed size."""
        for batch in torch.split(pixels, BATCH):
            self.update_features(compute_features(self.extractor, batch, self.device)[0])

    def update_features(self, features: Tensor) -> None:
        """Add the features (b, d) of generated images."""
        self.metric.update(features.to(self.metric.device), real=False)

    def compute_statistics(self, ranks: Ranks) -> Statistics:
        """Return the statistics of the images added on all ranks; every rank must call, before :meth:`compute`."""
        sums = self.metric.fake_features_sum.clone(), self.metric.fake_features_cov_sum.clone()
        count = ranks.reduce(self.metric.fake_features_num_samples.double())
        return self._from_sums(ranks, *sums, int(count))

    def compute(self, ranks: Ranks | None = None) -> float:
        """Return the distance of the images of all ranks, and reset them but not the reference; every rank must call.

        Only the first rank computes the eigenvalues, which take seconds for 2048 features; the others return NaN. So
        does the first for features that are not finite, whose eigenvalues some libraries refuse to compute.
        """
        value = math.nan
        with self.metric.sync_context():  # the sums of all ranks
            if (ranks or Ranks()).is_first and self.metric.fake_features_cov_sum.isfinite().all():
                value = float(self.metric.compute())
        self.metric.reset()
        return value


class _PassThrough(nn.Module):
    """Passes features on to torchmetrics, which expects a module that computes them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _read_cached(path: Path | None) -> Statistics | None:
    """Return the cached statistics, or ``None`` where the file is missing or damaged and must be computed again."""
    content = read_cached(path)
    return None if content is None else _parse_statistics(io.BytesIO(content), str(path))


def read_statistics(path: Path) -> Statistics:
    """Read statistics as pytorch-fid and EDM (``mu``, ``sigma``) or ADM (with ``mu_s``, ``sigma_s``) write them.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            return _parse_statistics(file, str(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse_statistics(file: BinaryIO, name: str) -> Statistics:
    arrays = read_npz(file, name, ("mu", "sigma", "n"))
    if not {"mu", "sigma"} <= set(arrays):
        raise UserError(
            f"{name} has no statistics: its keys are {', '.join(list_npz(file, name)) or 'none'}, "
            "expected mu and sigma, as pytorch-fid writes them"
        )
    kinds = {array.dtype.kind for array in arrays.values()}
    if not kinds <= set("fiu"):
        raise UserError(f"{name} is not an npz file of statistics: mu, sigma and n must be numbers")
    mu, sigma = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    n = arrays.get("n", np.zeros(1))
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise UserError(
            f"{name}: mu of shape {mu.shape} and sigma of shape {sigma.shape} do not match; expected d and d x d"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{name} holds NaN or infinity; compute the statistics again")
    if n.size != 1 or not 0 <= n.item() < 2**53:
        raise UserError(f"{name}: n must be a number of images, got {n.ravel()[:3].tolist()}")
    return Statistics(mu, sigma, int(n.item()))


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write, atomically, a file that pytorch-fid, EDM and :func:`read_statistics` read."""
    write_atomically(path, lambda file: file.write(_format_statistics(statistics)))


def _format_statistics(statistics: Statistics) -> bytes:
    mu, sigma, n = statistics
    buffer = io.BytesIO()
    np.savez(buffer, mu=mu, sigma=sigma, n=n)
    return buffer.getvalue()
