"""All figures of one set of images in one pass of the feature network, on any number of ranks.

torchmetrics does the arithmetic of the Fréchet distance, torch-fidelity that of the others, with the settings of its
command line; what is added here is that features are computed once, and stand in the order of the images.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.metrics.extractors import FeatureExtractor
from lightning_ddpm.metrics.frechet import BATCH, FrechetDistance, Statistics, to_contiguous
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

METRICS = {
    "fid": "Fréchet distance (Heusel et al. 2017)",
    "kid": "kernel distance (Binkowski et al. 2018)",
    "pr": "precision and recall (Kynkäänniemi et al. 2019)",
    "is": "Inception Score (Salimans et al. 2016)",
    "accuracy": "how often the network's verdict is the class asked for, of all images and of each class",
}
"""What can be asked for."""

SUBSETS, SUBSET = 100, 1000
"""The kernel distance is the mean over so many random subsets of so many images."""
NEIGHBOURS = 3
"""An image is near a set if it lies as near to one of its images as that one's so-manieth neighbour."""
SPLITS = 10
"""The Inception Score is the mean over so many parts of the set."""
MIN_IMAGES = {"fid": 2, "kid": 2, "pr": NEIGHBOURS + 1, "is": SPLITS, "accuracy": 1}
"""Images that a set has at least, by what is asked for."""
SEED = 2020
"""Chooses subsets and parts; torch-fidelity's."""


class MetricValue(NamedTuple):
    """A figure and, where it is a mean over subsets or parts, their standard deviation."""

    value: float
    std: float | None = None


class RequestedClasses(NamedTuple):
    """Which classes images were asked to be of.

    Attributes:
        labels: (n,) int64, of each image.
        names: of all classes there are, in order.
    """

    labels: Tensor
    names: Sequence[str]


def map_metric_names(metric: str) -> dict[str, str]:
    """What figures are called, by what the Fréchet distance in the same features is called.

    FID, KID and Inception Score are the names of figures by Inception alone; another resize is named behind them.
    """
    family, _, rest = metric.partition("_")
    suffix = f"_{rest}" if rest else ""
    if family == "fid":
        kernel, score, where = "kid", "inception_score", "_inception"
    else:
        kernel, score, where = "kd", "classifier_score", ""
    return {
        "fid": metric,
        "kid": f"{kernel}{suffix}",
        "precision": f"precision{where}{suffix}",
        "recall": f"recall{where}{suffix}",
        "is": f"{score}{suffix}",
        "accuracy": f"accuracy{where}{suffix}",
        "memorisation": f"memorisation{where}{suffix}",
    }


def list_metric_names(metric: str, metrics: Iterable[str]) -> list[str]:
    """What the figures of these :data:`METRICS` are called, by the Fréchet distance's name."""
    called = map_metric_names(metric)
    return [called[each] for asked in metrics for each in (("precision", "recall") if asked == "pr" else (asked,))]


def is_higher_better(name: str) -> bool:
    """Whether of two figures of this name the greater is the better one: not so of distances."""
    return name.startswith(("precision_", "recall_", "inception_score", "classifier_score", "accuracy_"))


def check_metrics(metrics: Collection[str], n: int) -> None:
    """Raise UserError for a metric that there is not, or that n images are too few for."""
    if isinstance(metrics, str) or not metrics or set(metrics) - set(METRICS):
        raise UserError(f"metrics is a list of one or more of {', '.join(METRICS)}, got {metrics!r}")
    for each in metrics:
        if n < MIN_IMAGES[each]:
            raise UserError(f"{METRICS[each]} takes at least {MIN_IMAGES[each]} images, got {n}; leave out {each!r}")


def kernel_distance(generated: Tensor, reference: Tensor) -> MetricValue:
    """Squared maximum mean discrepancy under a cubic kernel, unbiased, of features (n, d) and (m, d).

    The subsets are as large as the smaller set where that has fewer than :data:`SUBSET` images.
    """
    size = min(SUBSET, len(generated), len(reference))
    if size < 2:
        raise UserError(f"the kernel distance needs 2 images on each side, got {len(generated)} and {len(reference)}")
    found = kid_features_to_metric(
        generated, reference, kid_subsets=SUBSETS, kid_subset_size=size, rng_seed=SEED, verbose=False
    )
    return MetricValue(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])


def precision_recall(generated: Tensor, reference: Tensor) -> tuple[MetricValue, MetricValue]:
    """The share of generated images near the reference, and of the reference near generated images."""
    if min(len(generated), len(reference)) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall look at {NEIGHBOURS} neighbours and need more images than that on each side, "
            f"got {len(generated)} and {len(reference)}"
        )
    found = prc_features_to_metric(
        generated,
        reference,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=250,  # rows of distances in memory at a time
        save_cpu_ram=True,
        verbose=False,
    )
    return MetricValue(found[KEY_METRIC_PRECISION]), MetricValue(found[KEY_METRIC_RECALL])


def inception_score(logits: Tensor) -> MetricValue:
    """exp of the mean KL divergence between the verdict on an image and the mean verdict, of logits (n, classes)."""
    if len(logits) < SPLITS:
        raise UserError(f"the Inception Score is a mean over {SPLITS} parts of the set; it has {len(logits)} images")
    found = isc_features_to_metric(logits, splits=SPLITS, rng_seed=SEED)
    return MetricValue(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def accuracy(name: str, logits: Tensor, classes: RequestedClasses) -> dict[str, MetricValue]:
    """The share of images whose verdict, of logits (n, classes), is the class asked for: under ``name``, and of each
    class that was under ``name/class``.
    """
    right = (logits.argmax(1) == classes.labels).double()
    found = {name: MetricValue(right.mean().item())}
    for label in sorted(set(classes.labels.tolist())):
        found[f"{name}/{classes.names[label]}"] = MetricValue(right[classes.labels == label].mean().item())
    return found


class FeatureTable:
    """Vectors of n images, each computed on one of the ranks, in the order of the images.

    Args:
        n: number of images of all ranks.
        width: length of a vector.
    """

    def __init__(self, n: int, width: int) -> None:
        self.rows = torch.zeros(n, width)

    def put(self, start: int, rows: Tensor) -> None:
        """Keep the vectors of images start, start + 1, ..."""
        self.rows[start : start + len(rows)] = rows.cpu()

    def gather(self, ranks: Ranks, device: torch.device) -> Tensor:
        """Those of all ranks, (n, width) float32 on the CPU: where one has a vector, the others have zeros."""
        return ranks.reduce(
            self.rows.to(device, copy=True)
        ).cpu()  # reduce may sum in place; this rank's own are kept apart


class MetricSuite:
    """The figures of one set of n images against a reference, under one feature network.

    Args:
        extractor: loaded feature network.
        device: where features are computed.
        metrics: which of :data:`METRICS`.
        n: number of images to judge, on all ranks together.
        classes: which they were asked to be of; ``None`` where nobody asked.
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
        self.distance = FrechetDistance(extractor, device)
        self.features = FeatureTable(n, extractor.num_features) if self._keeps_features else None
        self.reference: Tensor | None = None
        self.logits: FeatureTable | None = None
        verdicts = [each for each in ("is", "accuracy") if each in metrics]
        if verdicts:
            if extractor.classes is None:
                raise UserError(
                    f"{extractor.protocol}: there are no verdicts to score, because the network has no class layer or "
                    f"its file of weights not the published one; leave `{verdicts[0]}` out, or name another "
                    "weights_path"
                )
            self.logits = FeatureTable(n, extractor.classes)
        if "accuracy" in metrics:
            if classes is None:
                raise UserError(
                    "accuracy is of images that a class was asked of, and these have none; leave it out, or draw them "
                    "from a model with classes, as configs/digits_conditional.yaml trains"
                )
            if extractor.classes != len(classes.names):
                raise UserError(
                    f"{extractor.protocol} tells {extractor.classes} classes apart and the model has "
                    f"{len(classes.names)} ({', '.join(classes.names)}); let a classifier of the same data judge, as "
                    "configs/digits_features.yaml trains"
                )

    @property
    def _keeps_features(self) -> bool:
        return not {"kid", "pr"}.isdisjoint(self.metrics)

    def set_reference(
        self,
        images: ImageDataset | None,
        statistics: Statistics | None,
        ranks: Ranks,
        progress: Callable[..., Iterator[Tensor]],
    ) -> str:
        """Take what to compare with; every rank must call.

        Args:
            images: the reference's images, as they are.
            statistics: theirs, where they are known already; the Fréchet distance takes them then.
            ranks: the processes that share the work.
            progress: shows (count, batch) pairs passing by.

        Returns:
            What was taken, in words.
        """
        said = "statistics as given"
        if self._keeps_features and images is None:
            raise UserError(
                "KID, precision and recall compare features, image by image, and the reference has statistics alone; "
                "name a folder of images or a data set, or ask for fid"
            )
        if images is not None and (self._keeps_features or ("fid" in self.metrics and statistics is None)):
            rows = FeatureTable(len(images), self.extractor.num_features) if self._keeps_features else None
            said = self.distance.set_reference(images, ranks, progress, also=rows.put if rows else None)
            self.reference = rows.gather(ranks, self.device) if rows else None
        if statistics is not None and "fid" in self.metrics:
            self.distance.set_reference_statistics(statistics, ranks)
        return said

    @torch.no_grad()
    def update(self, start: int, pixels: Tensor) -> None:
        """Judge images start, start + 1, ...: (b, c, h, w) uint8, in batches of the fixed size."""
        for batch in torch.split(pixels, BATCH):
            features, logits = self.extractor.features_and_logits(to_contiguous(batch, self.device))
            self.distance.update_features(features)
            if self.features:
                self.features.put(start, features)
            if self.logits:
                assert logits is not None
                self.logits.put(start, logits)
            start += len(batch)

    def statistics(self, ranks: Ranks) -> Statistics:
        """Of the images judged on all ranks; every rank must call, before :meth:`compute`."""
        return self.distance.compute_statistics(ranks)

    def compute(self, ranks: Ranks) -> dict[str, MetricValue]:
        """Every figure under its name; every rank must call.

        Returns:
            All of them on rank 0; elsewhere what all ranks compute together.
        """
        called = map_metric_names(self.extractor.metric)
        found: dict[str, MetricValue] = {}
        if "fid" in self.metrics:
            found[called["fid"]] = MetricValue(self.distance.compute())
        features = self.features.gather(ranks, self.device) if self.features else None
        logits = self.logits.gather(ranks, self.device) if self.logits else None
        if ranks.is_first and features is not None:
            assert self.reference is not None, "set_reference() comes first"
            if "kid" in self.metrics:
                found[called["kid"]] = kernel_distance(features, self.reference)
            if "pr" in self.metrics:
                on_device = features.to(self.device), self.reference.to(self.device)
                found[called["precision"]], found[called["recall"]] = precision_recall(*on_device)
        if ranks.is_first and logits is not None:
            if "is" in self.metrics:
                found[called["is"]] = inception_score(logits)
            if "accuracy" in self.metrics:
                assert self.classes is not None
                found |= accuracy(called["accuracy"], logits, self.classes)
        return found
