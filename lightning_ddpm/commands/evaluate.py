"""``evaluate``: compute metrics of the images of a checkpoint, or of a folder, with their provenance."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from torch import Tensor

from lightning_ddpm.commands import evaluation_inputs as inputs
from lightning_ddpm.commands import evaluation_report as results
from lightning_ddpm.commands import options as model_options
from lightning_ddpm.commands.batch_size import DEFAULT, choose_batch_size
from lightning_ddpm.commands.class_names import list_classes
from lightning_ddpm.commands.condition_files import require_conditions, take_conditions
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.missing import require_complete
from lightning_ddpm.diffusion import FixedLarge, ReverseVariance, require_chain
from lightning_ddpm.diffusion.elbo import get_half_bin
from lightning_ddpm.metrics import METRICS, FeatureExtractor, Inception, MetricSuite, RequestedClasses, Resize
from lightning_ddpm.metrics.bits_per_dim import measure_bits_per_dim
from lightning_ddpm.metrics.extractors import check_extractor
from lightning_ddpm.metrics.flow_likelihood import NAME, measure_flow_likelihood
from lightning_ddpm.metrics.frechet import write_statistics
from lightning_ddpm.metrics.image_batches import iterate_shard
from lightning_ddpm.metrics.suite import build_suites, check_metrics, check_reference, needs_features
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches, list_labels
from lightning_ddpm.models.image_generator import ImageGenerator
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.devices import name_device
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_output_file
from lightning_ddpm.utils.image_size import ImageSize
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.yaml_text import build_parser

BITS_PER_DIM, FLOW = "bpd", "bpd_flow"
LIKELIHOODS = {BITS_PER_DIM, FLOW}
"""Metrics of a model, of held-out images, by the variational bound and by the probability-flow ODE."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options, evaluate the images, print the table and write the result."""
    started = time.monotonic()
    parser = _build_parser()
    options = model_options.parse_options(parser, arguments, "evaluate", ["n"])
    metrics = _read_metrics(options)
    read = [options.ckpt, options.images, options.classifier, options.weaker, resolve_path(options.reference or "-")]
    for name, path, suffix in (("--out", options.out, ".json"), ("--save_stats", options.save_stats, ".npz")):
        if path:
            check_output_file(path, name, [suffix], read)
    model = model_options.load_model(parser, options) if options.ckpt else None
    if model:
        require_complete(model.values, "evaluate")
    evaluated = inputs.load_evaluated_images(options, model)
    if of_images := metrics - LIKELIHOODS:
        check_metrics(of_images, evaluated.n)
    conditions = model_options.read_conditions(options, model) if model else model_options.Conditions(None, None, ())
    reference = inputs.load_reference(options, evaluated.like) if metrics - {"is", "accuracy"} else None
    data = reference.data if reference else None
    if isinstance(model, DDPM) and model.condition_format.kinds and of_images:
        conditions = conditions._replace(given=conditions.given or take_conditions(data))
        require_conditions(model, conditions.given, conditions.guidance)
    if reference and (reference.images is not None or reference.statistics):
        check_reference(of_images, reference.origin["n"] or 2, str(reference.origin["from"]))
    if metrics & LIKELIHOODS:
        _check_bits_per_dim(model, options, data, metrics)
    with_features = needs_features(of_images) or options.save_stats
    extractors = _load_extractors(parser, options, evaluated.like) if with_features else []

    fabric = model_options.launch_fabric(options)
    options.batch_size = choose_batch_size(model, evaluated.n, conditions, options, fabric) if model else DEFAULT
    ranks, request = model_options.get_ranks(fabric), conditions.request(evaluated.n, options)
    batch_sizes = model_options.place_model(model, options, fabric) if model else []
    labels = list_labels(model, request) if isinstance(model, DDPM) and extractors else None
    classes = None if labels is None else RequestedClasses(labels, conditions.names)
    suites = build_suites(extractors, fabric.device, of_images, evaluated.n, evaluated.shape, classes)
    if ranks.is_first:
        if model and suites:
            report(model_options.describe_generation(model, evaluated.n, options.raw, conditions))
        results.warn_if_few_images(evaluated.n, extractors)
    if reference:
        progress = partial(show_progress, what="reference", show=ranks.is_first)
        workers = data.num_workers if data else 0
        for suite in suites:
            description = suite.set_reference(reference.images, reference.statistics, ranks, progress, workers)
            if ranks.is_first:
                report(f"reference: {description}")
    if suites:
        batches = _iterate_images(evaluated, model, request, ranks, fabric)
        for start, pixels in show_progress(batches, ranks.share(evaluated.n), "evaluating", ranks.is_first):
            for suite in suites:
                suite.update(start, pixels)
    network_evaluations = int(ranks.reduce(torch.tensor(sum(batch_sizes), device=fabric.device)))

    found: dict[str, dict[str, Any]] = {}
    if options.save_stats:
        assert isinstance(suites[0], MetricSuite)
        statistics = suites[0].frechet.compute_statistics(ranks)
        if ranks.is_first:
            write_statistics(options.save_stats, statistics)
    for suite in suites:
        for name, measured in suite.compute(ranks).items():
            found[name] = results.describe_metric(measured, suite.protocol)
    if BITS_PER_DIM in metrics:
        assert isinstance(model, DDPM)
        assert data
        variance = parser.instantiate(Namespace(variance=options.variance)).variance or FixedLarge()  # type: ignore[no-untyped-call]
        found |= _measure_bits_per_dim(model, data, variance, options, ranks, fabric)
    if FLOW in metrics:
        assert isinstance(model, DDPM)
        assert data
        found |= _measure_flow(model, data, options, ranks, fabric)
    if not ranks.is_first:
        return
    results.print_metrics(found, evaluated.n)
    if options.save_stats:
        report(f"wrote {options.save_stats}")
    if options.out:
        cost = {"nfe": network_evaluations / evaluated.n} if network_evaluations else {}
        batch_size = {"batch_size": options.batch_size} if model else {}
        compiled = {"network": "compiled"} if options.compile else {}
        result = {
            "metrics": found,
            "n": evaluated.n if suites else min(each["n"] for each in found.values()),
            "images": evaluated.origin | batch_size | conditions.describe() | cost | compiled,
            "reference": reference.origin if reference else None,
            "extractors": [results.describe_extractor(each) for each in extractors],
            "settings": results.describe_settings(evaluated.n, reference, metrics),
            "devices": f"{fabric.world_size} x {name_device(fabric.device)}, {options.precision}",
        }
        results.write_result(options.out, result, time.monotonic() - started)


def _build_parser() -> ArgumentParser:
    description = "Compute metrics of the images that a checkpoint generates, or of those in a folder."
    parser = build_parser("evaluate", description)
    add = parser.add_argument
    model_options.add_model_options(parser, required=False)
    add("--images", type=resolve_path, help="instead of --ckpt: a folder of images, or an npz file of samples (arr_0)")
    counts = f"number of images; default: {inputs.PUBLISHED}, or all of --images, and all held-out ones for bpd"
    add("--n", type=int, help=f"{counts}; fewer of them are spread evenly")
    listed = "; ".join(f"{name}: {what}" for name, what in METRICS.items())
    add(
        "--metrics",
        type=str,
        nargs="+",
        help=f"{listed}; bpd: bits/dim of held-out images; bpd_flow: by the flow; default: fid",
    )
    references = inputs.REFERENCES.replace("npz file", "npz file (mu and sigma, or arr_0)")
    add("--reference", type=str, help=f"{references}; default: the config.yaml beside --ckpt")
    add("--size", type=ImageSize, help="read a folder named by --reference as training does, at this size")
    add(
        "--on_error",
        type=Literal["refuse", "skip"],
        help="read a folder named by --reference as training does: refuse or skip images that cannot be used",
    )
    add("--max_skipped", type=float, default=0.01, help="largest share of images that --on_error skip may skip")
    add("--root", type=str, help="folder of the dataset that --reference names; default: that of the config, or data")
    parser.add_subclass_arguments(
        FeatureExtractor, "extractor", required=False, help=f"{list_classes(FeatureExtractor)}; default: Inception"
    )
    add("--weights_path", type=str, help="file of Inception's weights; default: downloaded")
    add("--protocols", type=Resize, nargs="+", help=f"resizes for Inception: {list_classes(Resize)}; default: TF1")
    parser.add_subclass_arguments(
        ReverseVariance, "variance", required=False, help="for bpd: FixedLarge (default), FixedSmall, LearnedRange"
    )
    add("--out", type=resolve_path, metavar="FILE.json", help="write every metric and its provenance to this file")
    add(
        "--save_stats",
        type=resolve_path,
        metavar="FILE.npz",
        help="write mu and sigma of the images in pytorch-fid's format",
    )
    model_options.add_device_options(parser)
    return parser


def _read_metrics(options: Namespace) -> set[str]:
    """Return the requested metrics.

    Raises:
        UserError: a metric is unknown, or options contradict each other.
    """
    if bool(options.ckpt) == bool(options.images):
        raise UserError("evaluate takes either --ckpt CHECKPOINT or --images FOLDER; give one of the two")
    metrics = set(options.metrics or ([] if options.save_stats and not options.reference else ["fid"]))
    unknown = metrics - {*METRICS, *LIKELIHOODS}
    if unknown:
        raise UserError(f"there is no metric {min(unknown)!r}; there are {', '.join([*METRICS, BITS_PER_DIM, FLOW])}")
    if options.images:
        of_generation = "steps", "sampler", "threshold", "raw", "compile", *model_options.CONDITIONS
        given = [name for name in of_generation if model_options.is_given(options[name])]
        if given:
            raise UserError(f"--{given[0]} is an option of generating images, and --images exist already; leave it out")
        if likelihoods := metrics & LIKELIHOODS:
            raise UserError(f"{min(likelihoods)} is a metric of a model; give --ckpt in place of --images")
    if options.save_stats and options.protocols and len(options.protocols) > 1:
        raise UserError("--save_stats writes the statistics of one protocol; give one of --protocols")
    return metrics


def _check_bits_per_dim(
    model: ImageGenerator | None, options: Namespace, data: ImageDataModule | None, metrics: set[str]
) -> None:
    """Check that bits/dim can be measured, before any work.

    Raises:
        UserError: there are no held-out images or only one, or the schedule has one step or is continuous, or the model
            has none.
    """
    if not isinstance(model, DDPM):
        raise UserError(
            f"bpd is the variational bound of a DDPM, and {options.ckpt} holds {type(model).__name__}; leave it out, "
            "and read in the run's logs what the model itself reports of its likelihood"
        )
    if data is None:
        raise UserError("bpd needs held-out images; give a run's config.yaml or a dataset's name as --reference")
    if (n := len(data.held_out)) < 2:
        raise UserError(f"the standard error of bpd needs at least 2 held-out images, got {n}; hold out more")
    if BITS_PER_DIM not in metrics:
        return
    get_half_bin(model.values.levels)  # raises for continuous data
    if require_chain(model.schedule, "bpd", "evaluate bpd_flow in its place").T < 2:
        raise UserError("bpd needs a schedule of at least 2 steps: the decoder takes its variance from t = 2, got T=1")


def _load_extractors(parser: ArgumentParser, options: Namespace, like: Tensor) -> list[FeatureExtractor]:
    """Load the feature network, once for each requested protocol."""
    given = Namespace(extractor=options.extractor, protocols=options.protocols)  # type: ignore[no-untyped-call]
    built = parser.instantiate(given)
    extractor = built.extractor or Inception()
    if options.weights_path:
        if not isinstance(extractor, Inception):
            raise UserError(f"--weights_path is an option of Inception, got {type(extractor).__name__}; leave it out")
        extractor.weights_path = options.weights_path
    check_extractor(extractor, like.shape, like.dtype)
    extractor.load()
    return [extractor.with_resize(resize) for resize in built.protocols] if built.protocols else [extractor]


def _iterate_images(
    evaluated: inputs.EvaluatedImages,
    model: ImageGenerator | None,
    request: SampleRequest,
    ranks: Ranks,
    fabric: Fabric,
) -> Iterator[tuple[int, tuple[int, Tensor]]]:
    """Yield this rank's batches of images: their number, the index of the first one, and the pixels."""
    if model:
        for (_, start, stop), pixels in generate_batches(model, request, ranks, fabric.autocast):
            yield stop - start, (start, pixels)
    else:
        assert evaluated.images is not None
        yield from iterate_shard(evaluated.images, evaluated.n, ranks)


def _measure_bits_per_dim(
    model: DDPM, data: ImageDataModule, variance: ReverseVariance, options: Namespace, ranks: Ranks, fabric: Fabric
) -> dict[str, dict[str, Any]]:
    """Measure bits/dim of the held-out images."""
    images, held_out = data.held_out, len(data.held_out)
    n = min(options.n or held_out, held_out)
    progress = partial(show_progress, what="bits/dim", show=ranks.is_first)
    estimates = measure_bits_per_dim(
        model, images, n, variance, options.seed, options.batch_size, ranks, fabric.autocast, progress
    )
    chosen = f"{n} of {held_out} held-out images, spread evenly" if n < held_out else f"{n} held-out images"
    protocol = f"variational bound of {chosen}, {variance}"
    return {name: results.describe_bits_per_dim(each, protocol) for name, each in estimates.items()}


def _measure_flow(
    model: DDPM, data: ImageDataModule, options: Namespace, ranks: Ranks, fabric: Fabric
) -> dict[str, dict[str, Any]]:
    """Measure the likelihood of the held-out images by the probability-flow ODE."""
    images, held_out, tolerance = data.held_out, len(data.held_out), 1e-3
    n = min(options.n or held_out, held_out)
    progress = partial(show_progress, what="likelihood", show=ranks.is_first)
    estimate = measure_flow_likelihood(
        model, images, n, options.seed, options.batch_size, tolerance, ranks, fabric.autocast, progress
    )
    protocol = (
        f"probability-flow ODE, tolerance {tolerance:g}, {estimate.nfe:.0f} NFE, of {n} of {held_out} held-out images"
    )
    return {NAME: results.describe_bits_per_dim(estimate, protocol)}
