"""Metrics of images of any values and number of channels that need no trained network, on any number of ranks.

They compare the data's own numbers: how much of each wavelength an image has, and how the values of a channel are
distributed. They say nothing about objects: images of the same spectra and values may look unlike each other.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics.feature_table import FeatureTable
from lightning_ddpm.metrics.frechet import Progress, Statistics
from lightning_ddpm.metrics.image_batches import iterate_shard
from lightning_ddpm.metrics.scores import MetricValue
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

FIELD_METRICS = ("spectrum", "marginals")
"""The metrics of this file, by their keys in :data:`~lightning_ddpm.metrics.suite.METRICS`."""
NAMES = {"spectrum": "spectrum_db", "marginals": "wasserstein"}
"""Their names in logs; that of channel i ends in ``/channel_i``."""
MAX_VALUES = 2**21
"""Largest number of values of a channel that are compared; of more, each image gives evenly spaced ones."""
IMAGES, REFERENCE = "evaluated images", "reference"
FLOOR = 1e-12
"""Share of the reference's power below which the power of a ring counts as this share: images without any have none."""


def compute_radial_spectrum(images: Tensor) -> Tensor:
    """Compute the radially averaged power spectrum of each channel.

    Ring k has all frequencies (f_y, f_x), in cycles per pixel, of length k / L after rounding, with the shorter side L;
    the mean, k = 0, is excluded, as are frequencies above Nyquist's in the corners. Images are taken to be periodic.

    Args:
        images: (n, c, h, w).

    Returns:
        (n, c, L // 2) float64, the mean of abs(FFT)^2 / (h w) over the ring k = 1..L // 2.
    """
    h, w = images.shape[2:]
    power = torch.fft.fft2(images.double(), norm="ortho").abs().square().flatten(2)
    rings = _number_rings(h, w).to(images.device).flatten()
    count = min(h, w) // 2
    sums = power.new_zeros(*power.shape[:2], rings.max() + 1).index_add_(2, rings, power)
    sizes = torch.bincount(rings)
    means: Tensor = sums / sizes
    return means[:, :, 1 : count + 1]


def _number_rings(h: int, w: int) -> Tensor:
    y, x = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (h, w))
    radius: Tensor = (y[:, None].square() + x.square()).sqrt() * min(h, w)
    return radius.round().long()


def compute_spectral_distance(spectrum: Tensor, reference: Tensor) -> Tensor:
    """Compute the radially averaged log spectral distance of each channel, (c,) dB.

    The root mean square over the rings of 10 log10(P_reference / P); Harris et al. 2022 (arXiv:2204.02028).

    Args:
        spectrum, reference: (c, k) mean spectra of two sets.
    """
    least = FLOOR * reference.sum(1, keepdim=True).clamp(min=torch.finfo(reference.dtype).tiny)
    ratio = torch.maximum(reference, least) / torch.maximum(spectrum, least)
    return (10 * ratio.log10()).square().mean(1).sqrt()


def compute_wasserstein(first: Tensor, second: Tensor) -> float:
    """Compute the Wasserstein-1 distance of two samples of numbers, in their unit: the area between their CDFs."""
    first, second = (each.double().sort().values for each in (first, second))
    every = torch.cat([first, second]).sort().values
    cdfs = [torch.searchsorted(each, every[:-1], right=True).double() / len(each) for each in (first, second)]
    return float(((cdfs[0] - cdfs[1]).abs() * every.diff()).sum())


class FieldMetrics:
    """The metrics of n images against a reference; they are used as a :class:`~lightning_ddpm.metrics.MetricSuite` is.

    Args:
        shape: (c, h, w) of the images.
        device: where spectra are computed, in float64: on the CPU for a device without it.
        metrics: which of :data:`FIELD_METRICS`; others are ignored.
        n: number of images to evaluate, on all ranks together.
    """

    protocol = "no network: radially averaged spectra, values of each channel"

    def __init__(self, shape: Sequence[int], device: torch.device, metrics: Collection[str], n: int) -> None:
        self.shape, self.metrics = tuple(shape), [each for each in FIELD_METRICS if each in metrics]
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.images, self.reference = _Measurements(self, n, IMAGES), _Measurements(self, 0, REFERENCE)

    def set_reference(
        self,
        images: ImageDataset | None,
        statistics: Statistics | None,
        ranks: Ranks,
        progress: Progress,
        workers: int = 0,
    ) -> str:
        """Measure the images that others are compared with; every rank must call.

        Args:
            images: the reference's images, not augmented.
            statistics: those of a feature network, which are not used here.
            ranks: the processes that share the work.
            progress: shows how many images are done.
            workers: number of processes of each rank that read image files.

        Returns:
            A description of the reference.

        Raises:
            UserError: there are no images, or they have values that are not finite.
        """
        if images is None:
            raise UserError(
                f"{' and '.join(self.metrics)} compare images, and the reference has statistics of features only; give "
                "a folder of images or a dataset"
            )
        self.reference = _Measurements(self, len(images), REFERENCE)
        for start, pixels in progress(iterate_shard(images, len(images), ranks, workers), ranks.share(len(images))):
            self.reference.update(start, pixels)
        self.reference.gather(ranks)
        return f"{len(images)} images"

    def update(self, start: int, pixels: Tensor) -> None:
        """Add images start, start + 1, ..., (b, c, h, w) in the data's own, finite values."""
        self.images.update(start, pixels)

    def compute(self, ranks: Ranks) -> dict[str, MetricValue]:
        """Compute every metric, by its name, and forget the images but not the reference; every rank must call.

        Returns:
            All metrics on rank 0; none on other ranks.
        """
        images, self.images = self.images, _Measurements(self, self.images.n, IMAGES)
        images.gather(ranks)
        if not ranks.is_first:
            return {}
        found: dict[str, MetricValue] = {}
        for metric in self.metrics:
            overall, each = _COMPARISONS[metric](images, self.reference)
            found[NAMES[metric]] = MetricValue(overall)
            if self.shape[0] > 1:
                found |= {f"{NAMES[metric]}/channel_{c}": MetricValue(value) for c, value in enumerate(each)}
        return found


class _Measurements:
    """What is kept of the images of a set: the sum of their spectra, and values of each channel."""

    def __init__(self, owner: FieldMetrics, n: int, name: str) -> None:
        c, h, w = owner.shape
        self.n, self.name, self.device, self.channels, self.pixels = n, name, owner.device, c, h * w
        self.spectrum = torch.zeros(c, min(h, w) // 2, dtype=torch.float64, device=owner.device)
        self.taken = min(self.pixels, max(1, MAX_VALUES // max(n, 1)))
        self.table = FeatureTable(n, c * self.taken) if "marginals" in owner.metrics else None

    def update(self, start: int, pixels: Tensor) -> None:
        finite = pixels.isfinite().flatten(1).all(1)
        if not finite.all():
            wrong = start + int(finite.int().argmin())
            raise UserError(
                f"spectrum and marginals need a finite value in every pixel, and image {wrong} of the {self.name} has "
                "NaN or infinity; leave such images out, or fill in what is missing"
            )
        if self.spectrum.numel():
            self.spectrum += compute_radial_spectrum(pixels.to(self.device)).sum(0)
        if self.table:
            places = torch.stack([self._choose(start + i) for i in range(len(pixels))])
            values = pixels.flatten(2).cpu().float()
            chosen = values.gather(2, places[:, None].expand(-1, self.channels, -1))
            self.table.put(start, chosen.flatten(1))

    def _choose(self, index: int) -> Tensor:
        """Return evenly spaced pixels of an image, which begin at another one in each image."""
        first = int(index * (math.sqrt(5) - 1) / 2 * self.pixels)
        return (torch.arange(self.taken) * self.pixels // self.taken + first) % self.pixels

    def gather(self, ranks: Ranks) -> None:
        """Bring the images of all ranks together; every rank must call."""
        self.spectrum = ranks.reduce(self.spectrum) / max(self.n, 1)
        if self.table:
            rows = self.table.gather(ranks, self.device)
            self.values = rows.reshape(self.n, self.channels, self.taken).transpose(0, 1).flatten(1)

    def list_channels(self) -> Iterator[Tensor]:
        """Yield the kept values of each channel."""
        yield from self.values


def _compare_spectra(images: _Measurements, reference: _Measurements) -> tuple[float, list[float]]:
    """Return the root mean square over the channels, and the distance of each, dB."""
    each = compute_spectral_distance(images.spectrum, reference.spectrum)
    return float(each.square().mean().sqrt()), each.tolist()


def _compare_values(images: _Measurements, reference: _Measurements) -> tuple[float, list[float]]:
    """Return the mean over the channels in the reference's standard deviations, and each distance in its unit."""
    pairs = list(zip(images.list_channels(), reference.list_channels(), strict=True))
    each = [compute_wasserstein(*pair) for pair in pairs]
    deviations = [float(second.double().std(correction=0)) for _, second in pairs]
    return sum(d / s if s else math.inf if d else 0.0 for d, s in zip(each, deviations, strict=True)) / len(each), each


_COMPARISONS = {"spectrum": _compare_spectra, "marginals": _compare_values}
