"""``check-data``: read a whole dataset, as training would, and report every unusable image."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from lightning_ddpm.commands.parsing import instantiate, parse
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.image_io import DecodedImage
from lightning_ddpm.data.sources import SPLITS
from lightning_ddpm.data.validation import cache_faults, read_all
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.yaml_text import build_parser

OTHERS = ("model", "trainer", "seed_everything", "ckpt_path", "optimizer", "lr_scheduler", "weights_only", "verbose")
"""Keys of a training config other than its data."""


def run(arguments: Sequence[str]) -> int:
    """Read every image and print a line for each unusable one, and a summary of the others.

    Returns:
        The exit status: 1 if an image is unusable, else 0.
    """
    description = "Read all images of a dataset."
    parser = build_parser("check-data", description)
    parser.add_argument("--config", action="config", help="a training config, whose data is checked")
    parser.add_class_arguments(ImageDataModule, "data")
    for name in OTHERS:
        parser.add_argument(f"--{name}", type=Any, help="a key of a training config; ignored")
    options = parse(parser, arguments, "check-data")
    data: ImageDataModule = instantiate(parser, Namespace(data=options.data)).data  # type: ignore[no-untyped-call]
    parts = data.source.image_files(data.root)
    if not parts:
        data.prepare_data()
        n, held_out = (len(data.source.open(data.root, split)) for split in SPLITS)
        shape = "x".join(map(str, data.image_shape))
        report(f"{n} training images of {shape} and {held_out} held out, stored as arrays")
        return 0
    unusable, good = 0, Counter[tuple[str, str, tuple[int, int]]]()
    for files in parts:
        bad = []
        for index, each in enumerate(read_all(files, f"checking {data.root}")):
            if isinstance(each, DecodedImage):
                good[each.format, each.mode, each.size] += 1
            else:
                bad.append(index)
                report(each)
        cache_faults(files, bad)
        unusable += len(bad)
    report(f"{good.total()} images can be used, {unusable} cannot")
    for line in _summarize(good):
        report(line)
    return min(unusable, 1)


def _summarize(good: Counter[tuple[str, str, tuple[int, int]]]) -> list[str]:
    """Return lines with the number of images by format and mode, and their smallest and largest sides."""
    if not good:
        return []
    kinds, shapes = Counter[str](), Counter[str]()
    for (form, mode, (width, height)), n in good.items():
        kinds[f"{form} {mode}"] += n
        shapes[f"{width}x{height}"] += n
    short, long = ([pick(size) for _, _, size in good] for pick in (min, max))
    most_common = ", ".join(f"{n} of {shape}" for shape, n in shapes.most_common(3))
    return [
        "formats and modes: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        f"sizes: short sides {min(short)} to {max(short)}, long sides {min(long)} to {max(long)} pixels; {most_common}"
        + (", ..." if len(shapes) > 3 else ""),
    ]
