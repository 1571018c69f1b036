"""The results of ``evaluate``: its warnings, its table, and the JSON file of metrics with their provenance."""

import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_ddpm.commands.evaluation_inputs import PUBLISHED, Reference
from lightning_ddpm.metrics import BitsPerDimEstimate, FeatureExtractor, MetricValue
from lightning_ddpm.metrics.flow_likelihood import FlowEstimate
from lightning_ddpm.metrics.image_batches import BATCH
from lightning_ddpm.metrics.scores import NEIGHBOURS, SEED, SPLITS, SUBSET_SIZE, SUBSETS
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.files import write_json

LIBRARIES = ("lightning-ddpm", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")


def warn_if_few_images(n: int, extractors: Sequence[FeatureExtractor]) -> None:
    """Print a warning if n images are fewer than the features whose covariance they estimate."""
    needed = max((each.num_features for each in extractors), default=0)
    if n < needed:
        report(
            f"warning: {n} images are too few for the covariance of {needed} features, so the Fréchet distance is far "
            f"too high; evaluate at least {needed}, and {PUBLISHED} for a metric to publish"
        )


def describe_metric(measured: MetricValue, protocol: str) -> dict[str, Any]:
    """Return a metric's entry in the JSON result."""
    deviation = {} if measured.std is None else {"std": _finite_or_none(measured.std)}
    return {"value": _finite_or_none(measured.value), **deviation, "protocol": protocol}


def describe_bits_per_dim(estimate: BitsPerDimEstimate | FlowEstimate, protocol: str) -> dict[str, Any]:
    """Return the JSON entry of a variational bound, or of a likelihood by the flow."""
    mean, error = _finite_or_none(estimate.mean), _finite_or_none(estimate.standard_error)
    return {"value": mean, "standard_error": error, "n": estimate.n, "protocol": protocol}


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def print_metrics(metrics: dict[str, dict[str, Any]], n: int) -> None:
    """Print a table of name, value, deviation and protocol."""
    width = max((len(name) for name in metrics), default=0)
    for name, each in metrics.items():
        value = "not finite" if each["value"] is None else f"{each['value']:.5g}"
        deviation = each.get("std", each.get("standard_error"))
        deviation = "" if deviation is None else f"+- {deviation:.2g}"
        report(f"{name:<{width}}  {value:>10}  {deviation:<11}  {each.get('n', n)} images, {each['protocol']}")
    kinds = {"std": "standard deviation over its subsets or splits", "standard_error": "standard error of the mean"}
    for key, kind in kinds.items():
        if names := [name for name, each in metrics.items() if each.get(key) is not None]:
            report(f"+- of {', '.join(names)}: {kind}")


def describe_extractor(extractor: FeatureExtractor) -> dict[str, Any]:
    """Return the provenance of a feature network."""
    names = {"class": type(extractor).__name__, "protocol": extractor.protocol}
    return names | {"sha256": extractor.weights_sha256(), "batch_size": BATCH}


def describe_settings(n: int, reference: Reference | None, metrics: set[str]) -> dict[str, Any]:
    """Return the settings of the metrics that were computed."""
    settings: dict[str, Any] = {"pixels": "uint8, rounded once"}
    if "kid" in metrics and reference and reference.images is not None:
        size = min(SUBSET_SIZE, n, len(reference.images))
        settings["kid"] = {"subsets": SUBSETS, "subset_size": size, "seed": SEED}
    if "pr" in metrics:
        settings["pr"] = {"neighbours": NEIGHBOURS}
    if "is" in metrics:
        settings["is"] = {"splits": SPLITS, "seed": SEED}
    return settings


def write_result(path: Path, result: dict[str, Any], seconds: float) -> None:
    """Write the result, with the versions of the libraries and the time, as JSON."""
    result = result | {
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
    write_json(path, result)
    report(f"wrote {path}")
