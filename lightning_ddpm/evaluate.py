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
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from torch import Tensor

from lightning_ddpm import data as data_sets
from lightning_ddpm.bound import bits_per_dim
from lightning_ddpm.checkpoint import distrusting
from lightning_ddpm.console import progress, say
from lightning_ddpm.data import ImageDataModule, ImageDataset
from lightning_ddpm.data.pictures import open_pictures, open_samples
from lightning_ddpm.data.sampler import ranges
from lightning_ddpm.diffusion import FixedLarge, ReverseVariance
from lightning_ddpm.errors import UserError, first_line
from lightning_ddpm.files import require_writable, sha256, write_whole
from lightning_ddpm.generation import generate
from lightning_ddpm.metrics import (
    METRICS,
    FeatureExtractor,
    Figures,
    Inception,
    Measured,
    Resize,
    Statistics,
    read_statistics,
    write_statistics,
)
from lightning_ddpm.metrics.figures import NEIGHBOURS, SEED, SPLITS, SUBSET, SUBSETS
from lightning_ddpm.metrics.frechet import BATCH
from lightning_ddpm.model_options import (
    add_devices,
    add_model,
    count_evaluations,
    described,
    known,
    launched,
    model_of,
    parse,
)
from lightning_ddpm.module import DDPM

BOUND = "bpd"
PUBLISHED = 50_000
"""Images of a figure to publish."""
SETS = ("CIFAR10", "CelebA", "Digits", "FashionMNIST", "MNIST")
"""Data sets that a name alone describes."""
LIBRARIES = ("lightning-ddpm", "torch", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "pillow")


class Judged(NamedTuple):
    """What is judged.

    Attributes:
        n: number of images.
        channels, size: of each.
        model: draws them, or
        images: they are there.
        origin: where they come from, for the provenance.
    """

    n: int
    channels: int
    size: int
    model: DDPM | None
    images: ImageDataset | None
    origin: dict[str, Any]


class Reference(NamedTuple):
    """What they are compared with.

    Attributes:
        images: the images, where they are known.
        statistics: of them, where a file has them.
        data: the data set's module, which knows held-out images.
        origin: where they come from, for the provenance.
    """

    images: ImageDataset | None
    statistics: Statistics | None
    data: ImageDataModule | None
    origin: dict[str, Any]


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
    judged = _judged(parser, options)
    reference = _reference(options, judged) if metrics - {"is"} else None
    if BOUND in metrics and (reference is None or reference.data is None):
        raise UserError("bpd is of a data set's held-out images; let --reference be a run's config.yaml or a data set")
    extractors = _extractors(parser, options, judged) if metrics - {BOUND} or options.save_stats else []

    fabric = launched(options)
    first = fabric.is_global_zero
    scores = [Figures(each, fabric.device, metrics - {BOUND}, judged.n) for each in extractors]
    if first:
        _announce(judged, extractors, options)
    if reference:
        for each in scores:
            said = each.set_reference(
                *(reference.images, reference.statistics, partial(_sum, fabric), fabric.global_rank),
                *(fabric.world_size, partial(progress, what="reference", show=first)),
            )
            if first:
                say(f"reference: {said}")
    spent = _judge(scores, judged, options, fabric) if scores else 0

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
        made = judged.origin | ({"evaluations": spent / judged.n} if spent else {})
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
        given = [name for name in ("steps", "sampler", "raw") if options[name]]
        if given:
            raise UserError(f"--{given[0]} says how images are drawn, and --images are there already; leave it out")
        if BOUND in metrics:
            raise UserError("bpd is a figure of a model; give --ckpt in place of --images")
    if options.save_stats and options.protocols and len(options.protocols) > 1:
        raise UserError("--save_stats writes the statistics of one protocol; give one of --protocols")
    return metrics


def _judged(parser: ArgumentParser, options: Namespace) -> Judged:
    if options.ckpt:
        model = model_of(parser, options)
        channels, size, _ = model.image_shape
        origin = {
            "checkpoint": str(options.ckpt),
            "sha256": sha256(options.ckpt),
            "weights": "raw" if options.raw else "EMA",
            "sampler": str(model.sampler),
            "seed": options.seed,
            "batch_size": options.batch_size,
        }
        judged = Judged(options.n or PUBLISHED, channels, size, model, None, origin)
    else:
        images = _images(options.images)
        channels, size, _ = images[0][0].shape
        if options.n and options.n > len(images):
            raise UserError(f"{options.images} has {len(images)} images and --n asks for {options.n}; lower it")
        origin = {"from": str(options.images), "fingerprint": images.fingerprint, "of": len(images)}
        judged = Judged(options.n or len(images), channels, size, None, images, origin)
    if judged.n < 2:
        raise UserError(f"there is no covariance of {judged.n} image; it takes 2 at least, and {PUBLISHED} to publish")
    return judged


def _images(path: Path) -> ImageDataset:
    """The images of a folder or an npz file."""
    if path.suffix != ".npz":
        return open_pictures(path)
    samples = open_samples(path)
    if samples is None:
        raise UserError(f"{path} has no images: there is no arr_0 in it; statistics alone can only be a --reference")
    return samples


def _reference(options: Namespace, judged: Judged) -> Reference:
    """What the images are compared with; refused where it has another shape."""
    name = options.reference
    if name is None:
        beside = options.ckpt.parent / "config.yaml" if options.ckpt else None
        if beside is None or not beside.is_file():
            raise UserError(
                "there is nothing to compare with: give --reference, a folder of images, an npz file, a run's "
                f"config.yaml, or one of {', '.join(SETS)}"
            )
        name = str(beside)
    path, data, statistics, images = Path(name), None, None, None
    if path.suffix == ".npz":
        images = open_samples(path)
        try:
            statistics = read_statistics(path)
        except UserError:
            if images is None:
                raise
        origin: dict[str, Any] = {
            "from": name,
            "sha256": sha256(path),
            "n": statistics.n if statistics else len(images or ()),
        }
    else:
        if path.is_dir():
            images = open_pictures(path)
        else:
            data = _data(name, options.root)
            images = data.reference()
        origin = {"from": name, "fingerprint": images.fingerprint, "n": len(images)}
    if images is not None:
        channels, size, _ = images[0][0].shape
        if (channels, size) != (judged.channels, judged.size):
            raise UserError(
                f"the reference {name} has images of {channels}x{size}x{size} and the judged ones are "
                f"{judged.channels}x{judged.size}x{judged.size} (channels x height x width); compare like with like"
            )
    return Reference(images, statistics, data, origin)


def _data(name: str, root: str | None) -> ImageDataModule:
    """The data of a run's config, or a data set by its name; prepared."""
    if Path(name).suffix in (".yaml", ".yml"):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(ImageDataModule, "data")
        try:
            config = yaml.safe_load(Path(name).read_text())["data"]
            with distrusting(name):
                data: ImageDataModule = parser.instantiate(parser.parse_object({"data": config})).data
        except FileNotFoundError as error:
            raise UserError(f"there is no file {name}") from error
        except Exception as error:  # jsonargparse has many; all mean that it is no run's config
            if isinstance(error, UserError):  # refused by name
                raise
            raise UserError(
                f"{name} does not say of any data, as a run's config.yaml does: {first_line(error)}"
            ) from error
    elif name in SETS:
        data = ImageDataModule(getattr(data_sets, name)())
    else:
        raise UserError(
            f"there is no {name} to compare with: give a folder of images, an npz file, a run's config.yaml, or one of "
            f"{', '.join(SETS)}"
        )
    if root:
        data.root = Path(root)
    data.prepare_data()
    return data


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


def _announce(judged: Judged, extractors: list[FeatureExtractor], options: Namespace) -> None:
    if judged.model and extractors:
        say(described(judged.model, judged.n, options.raw))
    fewest = max((each.num_features for each in extractors), default=0)
    if judged.n < fewest:
        say(
            f"warning: {judged.n} images do not fill the covariance of {fewest} features, so that the Fréchet distance "
            f"comes out far too high; judge at least {fewest}, and {PUBLISHED} for a figure to publish"
        )


def _judge(scores: list[Figures], judged: Judged, options: Namespace, fabric: Fabric) -> int:
    """Show this rank's images to every network; how many network evaluations drawing them took on all ranks."""
    rank, world = fabric.global_rank, fabric.world_size
    spent: list[int] = []
    batches: Iterator[tuple[int, tuple[int, Tensor]]]
    if judged.model:
        judged.model.to(fabric.device)
        spent = count_evaluations(judged.model)
        drawn = generate(
            *(judged.model, judged.n, options.seed, options.batch_size, rank, world), context=fabric.autocast
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
    return int(_sum(fabric, torch.tensor(sum(spent), device=fabric.device)))


def _bound(
    parser: ArgumentParser, judged: Judged, reference: Reference, options: Namespace, fabric: Fabric
) -> dict[str, dict[str, Any]]:
    """Bits/dim of the held-out images."""
    assert reference.data is not None
    assert judged.model is not None
    reference.data.setup("test")
    given = Namespace(variance=options.variance)  # type: ignore[no-untyped-call]
    variance = parser.instantiate(given).variance or FixedLarge()
    judged.model.to(fabric.device)
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
