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

from lightning_ddpm.bound import bits_per_dim
from lightning_ddpm.compared import PUBLISHED, SETS, Judged, Reference, judged_images, reference_images
from lightning_ddpm.console import progress, say
from lightning_ddpm.data.sampler import ranges
from lightning_ddpm.diffusion import FixedLarge, ReverseVariance
from lightning_ddpm.errors import UserError
from lightning_ddpm.files import require_writable, write_whole
from lightning_ddpm.generation import generate
from lightning_ddpm.metrics import (
    METRICS,
    Classes,
    FeatureExtractor,
    Figures,
    Inception,
    Measured,
    Resize,
    write_statistics,
)
from lightning_ddpm.metrics.figures import NEIGHBOURS, SEED, SPLITS, SUBSET, SUBSETS
from lightning_ddpm.metrics.frechet import BATCH
from lightning_ddpm.model_options import (
    CONDITIONS,
    Conditions,
    add_devices,
    add_model,
    conditions,
    described,
    known,
    launched,
    model_of,
    parse,
    placed,
)

BOUND = "bpd"
LIBRARIES = ("lightning-ddpm", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")


def run(arguments: Sequence[str]) -> None:
    """Parse the options, judge the images, print the table and write the result."""
    started = time.monotonic()
    parser = _parser()
    classes = {"extractor": FeatureExtractor, "protocols": Resize, "variance": ReverseVariance}
    options = parse(parser, arguments, "evaluate", ["n"], classes)
    metrics = _metrics(options)
    for path in options.out, options.save_stats:
        if path:
            require_writable(path.parent)
    judged = judged_images(options, model_of(parser, options) if options.ckpt else None)
    asked = conditions(options, judged.model) if judged.model else Conditions(None, None, ())
    reference = reference_images(options, judged) if metrics - {"is", "accuracy"} else None
    if BOUND in metrics and (reference is None or reference.data is None):
        raise UserError("bpd is of a data set's held-out images; let --reference be a run's config.yaml or a data set")
    extractors = _extractors(parser, options, judged) if metrics - {BOUND} or options.save_stats else []

    fabric = launched(options)
    evaluations = placed(judged.model, options, fabric) if judged.model else []
    first = fabric.is_global_zero
    asked_of = _classes(judged, options.seed, asked)
    scores = [Figures(each, fabric.device, metrics - {BOUND}, judged.n, asked_of) for each in extractors]
    if first:
        _announce(judged, extractors, options, asked)
    if reference:
        for each in scores:
            said = each.set_reference(
                *(reference.images, reference.statistics, partial(_sum, fabric), fabric.global_rank),
                *(fabric.world_size, partial(progress, what="reference", show=first)),
            )
            if first:
                say(f"reference: {said}")
    if scores:
        _judge(scores, judged, options, fabric, asked)
    spent = int(_sum(fabric, torch.tensor(sum(evaluations), device=fabric.device)))

    found: dict[str, dict[str, Any]] = {}
    if options.save_stats:
        statistics = scores[0].statistics(partial(_sum, fabric))
        if first:
            write_statistics(options.save_stats, statistics)
    for extractor, each in zip(extractors, scores, strict=True):
        for name, measured in each.compute(partial(_sum, fabric), fabric.global_rank).items():
            found[name] = {**_plain(measured), "protocol": extractor.protocol}
    if BOUND in metrics:
        assert reference is not None
        found |= _bound(parser, judged, reference, options, fabric)
    if not first:
        return
    _print(found, judged.n)
    if options.save_stats:
        say(f"wrote {options.save_stats}")
    if options.out:
        made = judged.origin | asked.said() | ({"evaluations": spent / judged.n} if spent else {})
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
        write_whole(options.out, lambda file: file.write(text.encode()))
        say(f"wrote {options.out}")


def _parser() -> ArgumentParser:
    description = "Judge the images that a checkpoint draws, or those of a folder."
    parser = ArgumentParser("lightning-ddpm evaluate", description=description, exit_on_error=False)
    add = parser.add_argument
    add_model(parser, required=False)
    add("--images", type=Path, help="instead of --ckpt: a folder of images, or an npz file of samples (arr_0)")
    add("--n", type=int, help=f"number of images; default: {PUBLISHED}, or all of --images")
    listed = "; ".join(f"{name}: {what}" for name, what in METRICS.items())
    add("--metrics", type=str, nargs="+", help=f"{listed}; bpd: bits/dim of held-out images; default: fid")
    add(
        "--reference",
        type=str,
        help="a folder of images, an npz file (mu and sigma, or arr_0), a run's config.yaml, or one of "
        f"{', '.join(SETS)}; default: the config.yaml beside --ckpt",
    )
    add(
        "--root",
        type=str,
        help="folder of the data set, where --reference names one; default: as the config says, or data",
    )
    parser.add_subclass_arguments(
        FeatureExtractor, "extractor", required=False, help=f"{known(FeatureExtractor)}; default: Inception"
    )
    add("--weights_path", type=str, help="Inception's weights, where they are not to be downloaded")
    add("--protocols", type=Resize, nargs="+", help=f"of Inception, side by side: {known(Resize)}; default: TF1")
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
    add_devices(parser)
    return parser


def _metrics(options: Namespace) -> set[str]:
    """What is asked for; what does not go together is refused."""
    if bool(options.ckpt) == bool(options.images):
        raise UserError("evaluate judges either --ckpt CHECKPOINT or --images FOLDER; give one of the two")
    metrics = set(options.metrics or ([] if options.save_stats and not options.reference else ["fid"]))
    unknown = metrics - {*METRICS, BOUND}
    if unknown:
        raise UserError(f"there is no metric {min(unknown)!r}; there are {', '.join([*METRICS, BOUND])}")
    if options.images:
        given = [
            name
            for name in ("steps", "sampler", "raw", "compile", *CONDITIONS)
            if options[name] is not None and options[name] is not False
        ]
        if given:
            raise UserError(f"--{given[0]} says how images are drawn, and --images are there already; leave it out")
        if BOUND in metrics:
            raise UserError("bpd is a figure of a model; give --ckpt in place of --images")
    if options.save_stats and options.protocols and len(options.protocols) > 1:
        raise UserError("--save_stats writes the statistics of one protocol; give one of --protocols")
    return metrics


def _extractors(parser: ArgumentParser, options: Namespace, judged: Judged) -> list[FeatureExtractor]:
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
    extractor.check(judged.channels, judged.size)
    extractor.load()
    return [extractor.under(resize) for resize in made.protocols] if made.protocols else [extractor]


def _classes(judged: Judged, seed: int, asked: Conditions) -> Classes | None:
    """Which classes the images are asked to be of."""
    drawn = (seed, 0, judged.n)
    labels = judged.model.classes_of(drawn, asked.guidance, asked.labels) if judged.model else None
    return None if labels is None else Classes(labels, asked.names)


def _announce(judged: Judged, extractors: list[FeatureExtractor], options: Namespace, asked: Conditions) -> None:
    if judged.model and extractors:
        say(described(judged.model, judged.n, options.raw, asked))
    fewest = max((each.num_features for each in extractors), default=0)
    if judged.n < fewest:
        say(
            f"warning: {judged.n} images do not fill the covariance of {fewest} features, so that the Fréchet distance "
            f"comes out far too high; judge at least {fewest}, and {PUBLISHED} for a figure to publish"
        )


def _judge(scores: list[Figures], judged: Judged, options: Namespace, fabric: Fabric, asked: Conditions) -> None:
    """Show this rank's images to every network."""
    rank, world = fabric.global_rank, fabric.world_size
    batches: Iterator[tuple[int, tuple[int, Tensor]]]
    if judged.model:
        drawn = generate(
            *(judged.model, judged.n, options.seed, options.batch_size, rank, world),
            context=fabric.autocast,
            guidance=asked.guidance,
            labels=asked.labels,
        )
        batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in drawn)
    else:
        images = judged.images
        assert images is not None
        mine = ranges(judged.n, 0, BATCH, rank, world)
        batches = ((stop - start, (start, images.__getitems__(range(start, stop))[0])) for _, start, stop in mine)
    for start, pixels in progress(batches, -(-judged.n // world), "judging", fabric.is_global_zero):
        for each in scores:
            each.update(start, pixels)


def _bound(
    parser: ArgumentParser, judged: Judged, reference: Reference, options: Namespace, fabric: Fabric
) -> dict[str, dict[str, Any]]:
    """Bits/dim of the held-out images."""
    assert reference.data is not None
    assert judged.model is not None
    reference.data.setup("test")
    given = Namespace(variance=options.variance)  # type: ignore[no-untyped-call]
    variance = parser.instantiate(given).variance or FixedLarge()
    held_out = reference.data.held_out
    likelihoods = bits_per_dim(
        *(judged.model, held_out, len(held_out), variance, options.seed, options.batch_size),
        *(fabric.global_rank, fabric.world_size, partial(_sum, fabric), fabric.autocast),
        progress=partial(progress, what="bits/dim", show=fabric.is_global_zero),
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


def _sum(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Over all ranks."""
    total: Tensor = fabric.all_reduce(tensor, reduce_op="sum")  # type: ignore[assignment]
    return total


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _plain(measured: Measured) -> dict[str, Any]:
    found = {"value": _finite(measured.value)}
    return found if measured.std is None else found | {"std": _finite(measured.std)}


def _print(found: dict[str, dict[str, Any]], n: int) -> None:
    """A table: name, value, deviation, protocol."""
    width = max((len(name) for name in found), default=0)
    for name, each in found.items():
        value = "no number" if each["value"] is None else f"{each['value']:.5g}"
        deviation = each.get("std", each.get("standard_error"))
        beside = "" if deviation is None else f"+- {deviation:.2g}"
        say(f"{name:<{width}}  {value:>10}  {beside:<11}  {each.get('n', n)} images, {each['protocol']}")


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
