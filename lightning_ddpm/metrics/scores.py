"""Metrics of a set of images, computed from features or logits by torch-fidelity with its command line's settings."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from lightning_ddpm.utils.errors import UserError

SUBSETS, SUBSET_SIZE = 100, 1000
"""The kernel distance is the mean over this many random subsets of this many images."""
NEIGHBOURS = 3
"""An image is near a set if it lies within the distance of one of its images to that image's k-th neighbour: this k."""
SPLITS = 10
"""The Inception Score is the mean over this many parts of the set."""
SEED = 2020
"""Seed of the subsets and parts; torch-fidelity's."""


class MetricValue(NamedTuple):
    """The value of a metric and, where it is a mean over subsets or parts, their standard deviation."""

    value: float
    std: float | None = None


class RequestedClasses(NamedTuple):
    """The classes that images were conditioned on.

    Attributes:
        labels: (n,) int64, the class of each image.
        names: names of all classes, in the order of the labels.
    """

    labels: Tensor
    names: Sequence[str]


def compute_kernel_distance(generated: Tensor, reference: Tensor) -> MetricValue:
    """Compute the unbiased squared maximum mean discrepancy under a cubic kernel; Binkowski et al. 2018.

    The subsets are as large as the smaller set where that has fewer than :data:`SUBSET_SIZE` images.

    Args:
        generated: features (n, d).
        reference: features (m, d).
    """
    size = min(SUBSET_SIZE, len(generated), len(reference))
    if size < 2:
        raise UserError(f"the kernel distance needs 2 images on each side, got {len(generated)} and {len(reference)}")
    found = kid_features_to_metric(
        generated, reference, kid_subsets=SUBSETS, kid_subset_size=size, rng_seed=SEED, verbose=False
    )
    return MetricValue(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])


def compute_precision_recall(generated: Tensor, reference: Tensor) -> tuple[MetricValue, MetricValue]:
    """Compute the share of generated images near the reference, and of reference images near the generated ones."""
    if min(len(generated), len(reference)) <= NEIGHBOURS:
        raise UserError(
            f"precision and recall use {NEIGHBOURS} neighbours and need more images than that on each side, "
            f"got {len(generated)} and {len(reference)}"
        )
    # prc_batch_size is the number of rows of distances in memory at a time.
    found = prc_features_to_metric(
        generated, reference, prc_neighborhood=NEIGHBOURS, prc_batch_size=250, save_cpu_ram=True, verbose=False
    )
    return MetricValue(found[KEY_METRIC_PRECISION]), MetricValue(found[KEY_METRIC_RECALL])


def compute_inception_score(logits: Tensor) -> MetricValue:
    """Compute exp of the mean KL divergence of p(y | image) from its mean over images, from logits (n, classes)."""
    if len(logits) < SPLITS:
        raise UserError(f"the Inception Score is a mean over {SPLITS} parts of the set; it has {len(logits)} images")
    found = isc_features_to_metric(logits, splits=SPLITS, rng_seed=SEED)
    return MetricValue(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def compute_accuracy(name: str, logits: Tensor, classes: RequestedClasses) -> dict[str, MetricValue]:
    """Compute the share of images whose predicted class, from logits (n, classes), is the requested one.

    Returns:
        The share of all images under ``name``, and of those of each requested class under ``name/class``.
    """
    is_right = (logits.argmax(1) == classes.labels).double()
    found = {name: MetricValue(is_right.mean().item())}
    for label in sorted(set(classes.labels.tolist())):
        found[f"{name}/{classes.names[label]}"] = MetricValue(is_right[classes.labels == label].mean().item())
    return found
