"""All metrics of one set of images in one pass of the feature network, on any number of ranks.

Features are computed once and kept in the order of the images; torchmetrics does the arithmetic of the Fréchet
distance, torch-fidelity that of the other metrics.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics import scores
from lightning_ddpm.metrics.extractors import FeatureExtractor, compute_features
from lightning_ddpm.metrics.feature_table import FeatureTable, write_cached_rows
from lightning_ddpm.metrics.fields import FIELD_METRICS, NAMES, FieldMetrics
from lightning_ddpm.metrics.frechet import FrechetDistance, Progress, Statistics
from lightning_ddpm.metrics.image_batches import BATCH
from lightning_ddpm.metrics.scores import MetricValue, RequestedClasses
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

METRICS = {
    "fid": "Fréchet distance (Heusel et al. 2017)",
    "kid": "kernel distance (Binkowski et al. 2018)",
    "pr": "precision and recall (Kynkäänniemi et al. 2019)",
    "is": "Inception Score (Salimans et al. 2016)",
    "accuracy": "share of images whose predicted class is the requested one, of all images and of each class",
    "spectrum": "distance of radially averaged power spectra in dB, without a network (Harris et al. 2022)",
    "marginals": "Wasserstein-1 distance of each channel's values, without a network",
}
"""The metrics that can be requested."""

MIN_IMAGES = {"fid": 2, "kid": 2, "pr": scores.NEIGHBOURS + 1, "is": scores.SPLITS, "accuracy": 1}
MIN_IMAGES |= dict.fromkeys(FIELD_METRICS, 1)
"""The smallest set of images that each metric can be computed of."""


def map_metric_names(metric: str) -> dict[str, str]:
    """Return the names of all metrics, given the name of the Fréchet distance between the same features.

    Only metrics of Inception's features are called FID, KID and Inception Score; another resize is appended.
    """
    family, _, rest = metric.partition("_")
    suffix = f"_{rest}" if rest else ""
    if family == "fid":
        kernel, score, network = "kid", "inception_score", "_inception"
    else:
        kernel, score, network = "kd", "classifier_score", ""
    return {
        "fid": metric,
        "kid": f"{kernel}{suffix}",
        "precision": f"precision{network}{suffix}",
        "recall": f"recall{network}{suffix}",
        "is": f"{score}{suffix}",
        "accuracy": f"accuracy{network}{suffix}",
        "memorisation": f"memorisation{network}{suffix}",
    }


def list_metric_names(metric: str, metrics: Iterable[str]) -> list[str]:
    """Return the names of these :data:`METRICS`, given that of the Fréchet distance between the same features."""
    names = map_metric_names(metric) | NAMES
    return [names[key] for each in metrics for key in (("precision", "recall") if each == "pr" else (each,))]


def needs_features(metrics: Collection[str]) -> bool:
    """Return whether some of these metrics are of a feature network."""
    return not set(metrics) <= set(FIELD_METRICS)


def is_higher_better(name: str) -> bool:
    """Return whether the greater of two values of this metric is the better one; for distances it is not."""
    return name.startswith(("precision_", "recall_", "inception_score", "classifier_score", "accuracy", "psnr", "ssim"))


def check_metrics(metrics: Collection[str], n: int) -> None:
    """Raise UserError for an unknown metric, or one that n images are too few for."""
    if isinstance(metrics, str) or not metrics or set(metrics) - set(METRICS):
        raise UserError(f"metrics is a list of one or more of {', '.join(METRICS)}, got {metrics!r}")
    for each in metrics:
        if n < MIN_IMAGES[each]:
            raise UserError(f"{METRICS[each]} takes at least {MIN_IMAGES[each]} images, got {n}; leave out {each!r}")


def check_reference(metrics: Collection[str], n: int, what: str) -> None:
    """Raise UserError for a metric that n images of the reference are too few for."""
    for each in sorted({"fid", "kid", "pr", *FIELD_METRICS}.intersection(metrics)):
        if n < (least := MIN_IMAGES[each]):
            images = "one image" if least == 1 else f"{least} images"
            raise UserError(
                f"{METRICS[each]} takes a reference of at least {images}, and {what} has {n}; give a larger one"
            )


class MetricSuite:
    """The metrics of one set of n images against a reference, in the features of one network.

    ``frechet`` is the Fréchet distance, which also computes the statistics of the images.

    Args:
        extractor: loaded feature network.
        device: where features are computed.
        metrics: which of :data:`METRICS`.
        n: number of images to evaluate, on all ranks together.
        classes: classes that the images were conditioned on; ``None`` for unconditional images.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        device: torch.device,
        metrics: Collection[str],
        n: int,
        classes: RequestedClasses | None = None,
    ) -> None:
        self.extractor, self.device, self.metrics, self.n, self.classes = extractor, device, metrics, n, classes
        self.frechet = FrechetDistance(extractor, device)
        self.protocol = extractor.protocol
        self.features = None if {"kid", "pr"}.isdisjoint(metrics) else FeatureTable(n, extractor.num_features)
        self.reference: Tensor | None = None
        self.logits: FeatureTable | None = None
        if need_logits := [each for each in ("is", "accuracy") if each in metrics]:
            if extractor.classes is None:
                raise UserError(
                    f"{extractor.protocol} has no logits: the network has no class layer, or its weights are not the "
                    f"published file; leave `{need_logits[0]}` out, or give another weights_path"
                )
            self.logits = FeatureTable(n, extractor.classes)
        if "accuracy" in metrics:
            if classes is None:
                raise UserError(
                    "accuracy needs images that were generated for requested classes, and these were not; leave it "
                    "out, or sample from a model with classes, as configs/digits_conditional.yaml trains"
                )
            if extractor.classes != len(classes.names):
                raise UserError(
                    f"{extractor.protocol} has {extractor.classes} classes and the model has {len(classes.names)} "
                    f"({', '.join(classes.names)}); use a classifier of the same data, as configs/digits_features.yaml "
                    "trains"
                )

    def set_reference(
        self,
        images: ImageDataset | None,
        statistics: Statistics | None,
        ranks: Ranks,
        progress: Progress,
        workers: int = 0,
    ) -> str:
        """Set what the images are compared with; every rank must call.

        Args:
            images: the reference's images, not augmented.
            statistics: their statistics, where a file has them; the Fréchet distance then uses these.
            ranks: the processes that share the work.
            progress: shows how many images are done.
            workers: number of processes of each rank that decode the reference's image files.

        Returns:
            A description of the reference.

        Raises:
            UserError: a metric needs the reference's images, and it has statistics only.
        """
        description = "statistics as given"
        if self.features and images is None:
            raise UserError(
                "KID, precision and recall compare features image by image, and the reference has statistics only; "
                "give a folder of images or a dataset, or request fid"
            )
        if images is not None and self.features:
            self.reference, description = self._compute_reference(images, ranks, progress, workers)
        elif images is not None and "fid" in self.metrics and statistics is None:
            description = self.frechet.set_reference(images, ranks, progress, workers=workers)
        if statistics is not None and "fid" in self.metrics:
            self.frechet.set_reference_statistics(statistics, ranks)
        return description

    def _compute_reference(
        self, images: ImageDataset, ranks: Ranks, progress: Progress, workers: int
    ) -> tuple[Tensor, str]:
        """Return the features of the reference, from the cache or computed on all ranks, and its description."""
        rows = FeatureTable(len(images), self.extractor.num_features)
        path = self.frechet.get_cache_path(images)
        path = path and path.with_suffix(".npy")
        is_cached = torch.tensor(float(ranks.is_first and rows.read_cached(path)), device=self.device)
        compute = not int(ranks.reduce(is_cached))
        description = self.frechet.set_reference(images, ranks, progress, rows.put if compute else None, workers)
        features = rows.gather(ranks, self.device)
        if compute and ranks.is_first:
            write_cached_rows(path, features)
        return features, description

    @torch.no_grad()
    def update(self, start: int, pixels: Tensor) -> None:
        """Add images start, start + 1, ..., (b, c, h, w) in their own values, in batches of the fixed size."""
        for batch in torch.split(pixels, BATCH):
            features, logits = compute_features(self.extractor, batch, self.device)
            self.frechet.update_features(features)
            if self.features:
                self.features.put(start, features)
            if self.logits:
                assert logits is not None
                self.logits.put(start, logits)
            start += len(batch)

    def compute(self, ranks: Ranks) -> dict[str, MetricValue]:
        """Compute every metric, by its name; every rank must call.

        Returns:
            All metrics on rank 0; none on other ranks.
        """
        names = map_metric_names(self.extractor.metric)
        found: dict[str, MetricValue] = {}
        if "fid" in self.metrics:
            distance = self.frechet.compute(ranks)
            if ranks.is_first:
                found[names["fid"]] = MetricValue(distance)
        features = self.features.gather(ranks, self.device) if self.features else None
        logits = self.logits.gather(ranks, self.device) if self.logits else None
        if ranks.is_first and features is not None:
            assert self.reference is not None, "set_reference() comes first"
            if "kid" in self.metrics:
                found[names["kid"]] = scores.compute_kernel_distance(features, self.reference)
            if "pr" in self.metrics:
                on_device = features.to(self.device), self.reference.to(self.device)
                found[names["precision"]], found[names["recall"]] = scores.compute_precision_recall(*on_device)
        if ranks.is_first and logits is not None:
            if "is" in self.metrics:
                found[names["is"]] = scores.compute_inception_score(logits)
            if "accuracy" in self.metrics:
                assert self.classes is not None
                found |= scores.compute_accuracy(names["accuracy"], logits, self.classes)
        return found


Suite = MetricSuite | FieldMetrics


def build_suites(
    extractors: Iterable[FeatureExtractor],
    device: torch.device,
    metrics: Collection[str],
    n: int,
    shape: Sequence[int],
    classes: RequestedClasses | None = None,
) -> list[Suite]:
    """Return what computes these metrics of n images (c, h, w): one object for each network, then one without.

    The arguments are those of :class:`MetricSuite` and :class:`~lightning_ddpm.metrics.fields.FieldMetrics`.
    """
    suites: list[Suite] = [MetricSuite(each, device, metrics, n, classes) for each in extractors]
    return suites + ([] if set(FIELD_METRICS).isdisjoint(metrics) else [FieldMetrics(shape, device, metrics, n)])
