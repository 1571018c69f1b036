"""``evaluate``: the figures of a checkpoint's images, or of a folder of them, and how they were made."""

import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from torch import Tensor

from lightning_ddpm.commands.evaluation_inputs import (
    DATASETS,
    PUBLISHED,
    EvaluatedImages,
    Reference,
    load_evaluated_images,
    load_reference,
)
from lightning_ddpm.commands.options import (
    CONDITIONS,
    Conditions,
    add_device_options,
    add_model_options,
    describe_generation,
    get_ranks,
    launch_fabric,
    list_classes,
    load_model,
    parse_options,
    place_model,
    read_conditions,
)
from lightning_ddpm.data.sharding import split_ranges
from lightning_ddpm.diffusion import FixedLarge, ReverseVariance
from lightning_ddpm.metrics import (
    METRICS,
    FeatureExtractor,
    Inception,
    MetricSuite,
    MetricValue,
    RequestedClasses,
    Resize,
    write_statistics,
)
from lightning_ddpm.metrics.bits_per_dim import measure_bits_per_dim
from lightning_ddpm.metrics.frechet import BATCH
from lightning_ddpm.metrics.suite import NEIGHBOURS, SEED, SPLITS, SUBSET, SUBSETS
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable, write_atomically

BITS_PER_DIM = "bpd"
LIBRARIES = ("lightning-ddpm", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")


def run(arguments: Sequence[str]) -> None:
    """Parse the options, judge the images, print the table and write the result."""
    started = time.monotonic()
    parser = _parser()
    classes = {"extractor": FeatureExtractor, "protocols": Resize, "variance": ReverseVariance}
    options = parse_options(parser, arguments, "evaluate", ["n"], classes)
    metrics = _metrics(options)
    for path in options.out, options.save_stats:
        if path:
            check_writable(path.parent)
    judged = load_evaluated_images(options, load_model(parser, options) if options.ckpt else None)
    asked = read_conditions(options, judged.model) if judged.model else Conditions(None, None, ())
    reference = load_reference(options, judged) if metrics - {"is", "accuracy"} else None
    if BITS_PER_DIM in metrics and (reference is None or reference.data is None):
        raise UserError("bpd is of a data set's held-out images; let --reference be a run's config.yaml or a data set")
    extractors = _extractors(parser, options, judged) if metrics - {BITS_PER_DIM} or options.save_stats else []

    fabric = launch_fabric(options)
    ranks = get_ranks(fabric)
    evaluations = place_model(judged.model, options, fabric) if judged.model else []
    first = fabric.is_global_zero
    asked_of = _classes(judged, options, asked)
    scores = [MetricSuite(each, fabric.device, metrics - {BITS_PER_DIM}, judged.n, asked_of) for each in extractors]
    if first:
        _announce(judged, extractors, options, asked)
    if reference:
        for each in scores:
            said = each.set_reference(
                *(reference.images, reference.statistics, ranks),
                partial(show_progress, what="reference", show=first),
            )
            if first:
                report(f"reference: {said}")
    if scores:
        _evaluate_images(scores, judged, options, fabric, asked)
    spent = int(ranks.reduce(torch.tensor(sum(evaluations), device=fabric.device)))

    found: dict[str, dict[str, Any]] = {}
    if options.save_stats:
        statistics = scores[0].statistics(ranks)
        if first:
            write_statistics(options.save_stats, statistics)
    for extractor, each in zip(extractors, scores, strict=True):
        for name, measured in each.compute(ranks).items():
            found[name] = {**_to_json(measured), "protocol": extractor.protocol}
    if BITS_PER_DIM in metrics:
        assert reference is not None
        found |= _measure_bits_per_dim(parser, judged, reference, options, fabric)
    if not first:
        return
    _print(found, judged.n)
    if options.save_stats:
        report(f"wrote {options.save_stats}")
    if options.out:
        made = judged.origin | asked.describe() | ({"evaluations": spent / judged.n} if spent else {})
        made |= {"network": "compiled"} if options.compile else {}
        result = {
            "figures": found,
            "n": judged.n,
            "images": made,
            "reference": reference.origin if reference else None,
            "extractors": [_provenance(each) for each in extractors],
            "settings": _settings(judged.n, reference, metrics),
            "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "devices": f"{fabric.world_size} x {fabric.device.type}, {options.precision}",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
        }
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(options.out, lambda file: file.write(text.encode()))
        report(f"wrote {options.out}")


def _parser() -> ArgumentParser:
    description = "Judge the images that a checkpoint draws, or those of a folder."
    parser = ArgumentParser("lightning-ddpm evaluate", description=description, exit_on_error=False)
    add = parser.add_argument
    add_model_options(parser, required=False)
    add("--images", type=Path, help="instead of --ckpt: a folder of images, or an npz file of samples (arr_0)")
    add("--n", type=int, help=f"number of images; default: {PUBLISHED}, or all of --images")
    listed = "; ".join(f"{name}: {what}" for name, what in METRICS.items())
    add("--metrics", type=str, nargs="+", help=f"{listed}; bpd: bits/dim of held-out images; default: fid")
    add(
        "--reference",
        type=str,
        help="a folder of images, an npz file (mu and sigma, or arr_0), a run's config.yaml, or one of "
        f"{', '.join(DATASETS)}; default: the config.yaml beside --ckpt",
    )
    add(
        "--root",
        type=str,
        help="folder of the data set, where --reference names one; default: as the config says, or data",
    )
    parser.add_subclass_arguments(
        FeatureExtractor, "extractor", required=False, help=f"{list_classes(FeatureExtractor)}; default: Inception"
    )
    add("--weights_path", type=str, help="Inception's weights, where they are not to be downloaded")
    add("--protocols", type=Resize, nargs="+", help=f"of Inception, side by side: {list_classes(Resize)}; default: TF1")
    parser.add_subclass_arguments(
        ReverseVariance, "variance", required=False, help="of bpd: FixedLarge (default), FixedSmall, LearnedRange"
    )
    add("--out", type=Path, metavar="FILE.json", help="every figure and how it was made")
    add(
        "--save_stats",
        type=Path,
        metavar="FILE.npz",
        help="mu and sigma of the images, as pytorch-fid and EDM read them",
    )
    add_device_options(parser)
    return parser


def _metrics(options: Namespace) -> set[str]:
    """What is asked for; what does not go together is refused."""
    if bool(options.ckpt) == bool(options.images):
        raise UserError("evaluate judges either --ckpt CHECKPOINT or --images FOLDER; give one of the two")
    metrics = set(options.metrics or ([] if options.save_stats and not options.reference else ["fid"]))
    unknown = metrics - {*METRICS, BITS_PER_DIM}
    if unknown:
        raise UserError(f"there is no metric {min(unknown)!r}; there are {', '.join([*METRICS, BITS_PER_DIM])}")
    if options.images:
        given = [
            name
            for name in ("steps", "sampler", "raw", "compile", *CONDITIONS)
            if options[name] is not None and options[name] is not False
        ]
        if given:
            raise UserError(f"--{given[0]} says how images are drawn, and --images are there already; leave it out")
        if BITS_PER_DIM in metrics:
            raise UserError("bpd is a figure of a model; give --ckpt in place of --images")
    if options.save_stats and options.protocols and len(options.protocols) > 1:
        raise UserError("--save_stats writes the statistics of one protocol; give one of --protocols")
    return metrics


def _extractors(parser: ArgumentParser, options: Namespace, judged: EvaluatedImages) -> list[FeatureExtractor]:
    """The feature network, loaded, under each protocol asked for."""
    given = Namespace(extractor=options.extractor, protocols=options.protocols)  # type: ignore[no-untyped-call]
    made = parser.instantiate(given)
    extractor = made.extractor or Inception()
    if options.weights_path:
        if not isinstance(extractor, Inception):
            raise UserError(
                f"--weights_path is of Inception, and {type(extractor).__name__} was asked for; leave it out"
            )
        extractor.weights_path = options.weights_path
    extractor.check_images(judged.channels, judged.size)
    extractor.load()
    return [extractor.with_resize(resize) for resize in made.protocols] if made.protocols else [extractor]


def _classes(judged: EvaluatedImages, options: Namespace, asked: Conditions) -> RequestedClasses | None:
    """Which classes the images are asked to be of."""
    request = asked.request(judged.n, options)
    labels = judged.model.choose_labels(request, 0, judged.n) if judged.model else None
    return None if labels is None else RequestedClasses(labels, asked.names)


def _announce(
    judged: EvaluatedImages, extractors: list[FeatureExtractor], options: Namespace, asked: Conditions
) -> None:
    if judged.model and extractors:
        report(describe_generation(judged.model, judged.n, options.raw, asked))
    fewest = max((each.num_features for each in extractors), default=0)
    if judged.n < fewest:
        report(
            f"warning: {judged.n} images do not fill the covariance of {fewest} features, so that the Fréchet distance "
            f"comes out far too high; judge at least {fewest}, and {PUBLISHED} for a figure to publish"
        )


def _evaluate_images(
    scores: list[MetricSuite], judged: EvaluatedImages, options: Namespace, fabric: Fabric, asked: Conditions
) -> None:
    """Show this rank's images to every network."""
    ranks = get_ranks(fabric)
    batches: Iterator[tuple[int, tuple[int, Tensor]]]
    if judged.model:
        generated = generate_batches(judged.model, asked.request(judged.n, options), ranks, fabric.autocast)
        batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in generated)
    else:
        images = judged.images
        assert images is not None
        mine = split_ranges(judged.n, 0, BATCH, ranks.rank, ranks.world_size)
        batches = ((stop - start, (start, images.__getitems__(range(start, stop))[0])) for _, start, stop in mine)
    for start, pixels in show_progress(batches, ranks.share(judged.n), "judging", fabric.is_global_zero):
        for each in scores:
            each.update(start, pixels)


def _measure_bits_per_dim(
    parser: ArgumentParser, judged: EvaluatedImages, reference: Reference, options: Namespace, fabric: Fabric
) -> dict[str, dict[str, Any]]:
    """Bits/dim of the held-out images."""
    assert reference.data is not None
    assert judged.model is not None
    reference.data.setup("test")
    given = Namespace(variance=options.variance)  # type: ignore[no-untyped-call]
    variance = parser.instantiate(given).variance or FixedLarge()
    held_out = reference.data.held_out
    likelihoods = measure_bits_per_dim(
        *(judged.model, held_out, len(held_out), variance, options.seed, options.batch_size),
        *(get_ranks(fabric), fabric.autocast),
        progress=partial(show_progress, what="bits/dim", show=fabric.is_global_zero),
    )
    return {
        name: {
            "value": _finite(each.mean),
            "standard_error": _finite(each.standard_error),
            "n": each.n,
            "protocol": f"variational bound of {each.n} held-out images, {variance}",
        }
        for name, each in likelihoods.items()
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _to_json(measured: MetricValue) -> dict[str, Any]:
    found = {"value": _finite(measured.value)}
    return found if measured.std is None else found | {"std": _finite(measured.std)}


def _print(found: dict[str, dict[str, Any]], n: int) -> None:
    """A table: name, value, deviation, protocol."""
    width = max((len(name) for name in found), default=0)
    for name, each in found.items():
        value = "no number" if each["value"] is None else f"{each['value']:.5g}"
        deviation = each.get("std", each.get("standard_error"))
        beside = "" if deviation is None else f"+- {deviation:.2g}"
        report(f"{name:<{width}}  {value:>10}  {beside:<11}  {each.get('n', n)} images, {each['protocol']}")


def _provenance(extractor: FeatureExtractor) -> dict[str, Any]:
    return {
        "class": type(extractor).__name__,
        "protocol": extractor.protocol,
        "sha256": extractor.weights_sha256(),
        "batch_size": BATCH,
    }


def _settings(n: int, reference: Reference | None, metrics: set[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {"pixels": "uint8, rounded once"}
    if "kid" in metrics and reference and reference.images is not None:
        size = min(SUBSET, n, len(reference.images))
        settings["kid"] = {"subsets": SUBSETS, "subset_size": size, "seed": SEED}
    if "pr" in metrics:
        settings["pr"] = {"neighbours": NEIGHBOURS}
    if "is" in metrics:
        settings["is"] = {"splits": SPLITS, "seed": SEED}
    return settings
