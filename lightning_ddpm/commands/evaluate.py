"""``evaluate``: compute metrics of the images of a checkpoint, or of a folder, with their provenance."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from torch import Tensor

from lightning_ddpm.commands.class_names import list_classes
from lightning_ddpm.commands.evaluation_inputs import (
    DATASETS,
    PUBLISHED,
    EvaluatedImages,
    Reference,
    load_evaluated_images,
    load_reference,
)
from lightning_ddpm.commands.evaluation_report import (
    describe_bits_per_dim,
    describe_extractor,
    describe_metric,
    describe_settings,
    print_metrics,
    warn_if_few_images,
    write_result,
)
from lightning_ddpm.commands.options import (
    CONDITIONS,
    Conditions,
    add_device_options,
    add_model_options,
    describe_generation,
    get_ranks,
    launch_fabric,
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
    RequestedClasses,
    Resize,
    write_statistics,
)
from lightning_ddpm.metrics.bits_per_dim import measure_bits_per_dim
from lightning_ddpm.metrics.frechet import BATCH
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable

BITS_PER_DIM = "bpd"


def run(arguments: Sequence[str]) -> None:
    """Parse the options, evaluate the images, print the table and write the result."""
    started = time.monotonic()
    parser = _build_parser()
    options = parse_options(parser, arguments, "evaluate", ["n"])
    metrics = _read_metrics(options)
    for path in options.out, options.save_stats:
        if path:
            check_writable(path.parent)
    evaluated = load_evaluated_images(options, load_model(parser, options) if options.ckpt else None)
    conditions = read_conditions(options, evaluated.model) if evaluated.model else Conditions(None, None, ())
    reference = load_reference(options, evaluated) if metrics - {"is", "accuracy"} else None
    if BITS_PER_DIM in metrics and (reference is None or reference.data is None):
        raise UserError("bpd needs held-out images; give a run's config.yaml or a dataset's name as --reference")
    extractors = _load_extractors(parser, options, evaluated) if metrics - {BITS_PER_DIM} or options.save_stats else []

    fabric = launch_fabric(options)
    ranks = get_ranks(fabric)
    batch_sizes = place_model(evaluated.model, options, fabric) if evaluated.model else []
    requested = _list_requested_classes(evaluated, options, conditions)
    suites = [MetricSuite(each, fabric.device, metrics - {BITS_PER_DIM}, evaluated.n, requested) for each in extractors]
    if ranks.is_first:
        if evaluated.model and extractors:
            report(describe_generation(evaluated.model, evaluated.n, options.raw, conditions))
        warn_if_few_images(evaluated.n, extractors)
    if reference:
        progress = partial(show_progress, what="reference", show=ranks.is_first)
        for suite in suites:
            description = suite.set_reference(reference.images, reference.statistics, ranks, progress)
            if ranks.is_first:
                report(f"reference: {description}")
    if suites:
        _evaluate_images(suites, evaluated, options, fabric, conditions)
    network_evaluations = int(ranks.reduce(torch.tensor(sum(batch_sizes), device=fabric.device)))

    found: dict[str, dict[str, Any]] = {}
    if options.save_stats:
        statistics = suites[0].frechet.compute_statistics(ranks)
        if ranks.is_first:
            write_statistics(options.save_stats, statistics)
    for suite in suites:
        for name, measured in suite.compute(ranks).items():
            found[name] = describe_metric(measured, suite.extractor.protocol)
    if BITS_PER_DIM in metrics:
        assert reference is not None
        found |= _measure_bits_per_dim(parser, evaluated, reference, options, fabric)
    if not ranks.is_first:
        return
    print_metrics(found, evaluated.n)
    if options.save_stats:
        report(f"wrote {options.save_stats}")
    if options.out:
        nfe = {"nfe": network_evaluations / evaluated.n} if network_evaluations else {}
        compiled = {"network": "compiled"} if options.compile else {}
        result = {
            "metrics": found,
            "n": evaluated.n,
            "images": evaluated.origin | conditions.describe() | nfe | compiled,
            "reference": reference.origin if reference else None,
            "extractors": [describe_extractor(each) for each in extractors],
            "settings": describe_settings(evaluated.n, reference, metrics),
            "devices": f"{fabric.world_size} x {fabric.device.type}, {options.precision}",
        }
        write_result(options.out, result, time.monotonic() - started)


def _build_parser() -> ArgumentParser:
    description = "Compute metrics of the images that a checkpoint generates, or of those in a folder."
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
        help="folder of the dataset, where --reference names one; default: that of the config, or data",
    )
    parser.add_subclass_arguments(
        FeatureExtractor, "extractor", required=False, help=f"{list_classes(FeatureExtractor)}; default: Inception"
    )
    add("--weights_path", type=str, help="file of Inception's weights; default: downloaded")
    add("--protocols", type=Resize, nargs="+", help=f"resizes for Inception: {list_classes(Resize)}; default: TF1")
    parser.add_subclass_arguments(
        ReverseVariance, "variance", required=False, help="for bpd: FixedLarge (default), FixedSmall, LearnedRange"
    )
    add("--out", type=Path, metavar="FILE.json", help="write every metric and its provenance to this file")
    add(
        "--save_stats",
        type=Path,
        metavar="FILE.npz",
        help="write mu and sigma of the images to this file, as pytorch-fid and EDM read them",
    )
    add_device_options(parser)
    return parser


def _read_metrics(options: Namespace) -> set[str]:
    """Return the requested metrics.

    Raises:
        UserError: a metric is unknown, or options contradict each other.
    """
    if bool(options.ckpt) == bool(options.images):
        raise UserError("evaluate takes either --ckpt CHECKPOINT or --images FOLDER; give one of the two")
    metrics = set(options.metrics or ([] if options.save_stats and not options.reference else ["fid"]))
    unknown = metrics - {*METRICS, BITS_PER_DIM}
    if unknown:
        raise UserError(f"there is no metric {min(unknown)!r}; there are {', '.join([*METRICS, BITS_PER_DIM])}")
    if options.images:
        of_generation = "steps", "sampler", "raw", "compile", *CONDITIONS
        given = [name for name in of_generation if options[name] is not None and options[name] is not False]
        if given:
            raise UserError(f"--{given[0]} is an option of generating images, and --images exist already; leave it out")
        if BITS_PER_DIM in metrics:
            raise UserError("bpd is a metric of a model; give --ckpt in place of --images")
    if options.save_stats and options.protocols and len(options.protocols) > 1:
        raise UserError("--save_stats writes the statistics of one protocol; give one of --protocols")
    return metrics


def _load_extractors(parser: ArgumentParser, options: Namespace, evaluated: EvaluatedImages) -> list[FeatureExtractor]:
    """Load the feature network, once for each requested protocol."""
    given = Namespace(extractor=options.extractor, protocols=options.protocols)  # type: ignore[no-untyped-call]
    built = parser.instantiate(given)
    extractor = built.extractor or Inception()
    if options.weights_path:
        if not isinstance(extractor, Inception):
            raise UserError(f"--weights_path is an option of Inception, got {type(extractor).__name__}; leave it out")
        extractor.weights_path = options.weights_path
    extractor.check_images(evaluated.channels, evaluated.size)
    extractor.load()
    return [extractor.with_resize(resize) for resize in built.protocols] if built.protocols else [extractor]


def _list_requested_classes(
    evaluated: EvaluatedImages, options: Namespace, conditions: Conditions
) -> RequestedClasses | None:
    """Return the classes that the images are conditioned on."""
    if evaluated.model is None:
        return None
    labels = evaluated.model.choose_labels(conditions.request(evaluated.n, options), 0, evaluated.n)
    return None if labels is None else RequestedClasses(labels, conditions.names)


def _evaluate_images(
    suites: list[MetricSuite], evaluated: EvaluatedImages, options: Namespace, fabric: Fabric, conditions: Conditions
) -> None:
    """Pass this rank's images through every feature network."""
    ranks = get_ranks(fabric)
    batches: Iterator[tuple[int, tuple[int, Tensor]]]
    if evaluated.model:
        generated = generate_batches(evaluated.model, conditions.request(evaluated.n, options), ranks, fabric.autocast)
        batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in generated)
    else:
        images = evaluated.images
        assert images is not None
        shard = split_ranges(evaluated.n, 0, BATCH, ranks)
        batches = ((stop - start, (start, images.__getitems__(range(start, stop))[0])) for _, start, stop in shard)
    for start, pixels in show_progress(batches, ranks.share(evaluated.n), "evaluating", ranks.is_first):
        for suite in suites:
            suite.update(start, pixels)


def _measure_bits_per_dim(
    parser: ArgumentParser, evaluated: EvaluatedImages, reference: Reference, options: Namespace, fabric: Fabric
) -> dict[str, dict[str, Any]]:
    """Measure bits/dim of the held-out images."""
    assert reference.data is not None
    assert evaluated.model is not None
    reference.data.setup("test")
    given = Namespace(variance=options.variance)  # type: ignore[no-untyped-call]
    variance = parser.instantiate(given).variance or FixedLarge()
    held_out = reference.data.held_out
    estimates = measure_bits_per_dim(
        evaluated.model,
        held_out,
        len(held_out),
        variance,
        options.seed,
        options.batch_size,
        get_ranks(fabric),
        fabric.autocast,
        progress=partial(show_progress, what="bits/dim", show=fabric.is_global_zero),
    )
    protocol = f"variational bound of {len(held_out)} held-out images, {variance}"
    return {name: describe_bits_per_dim(each, protocol) for name, each in estimates.items()}
