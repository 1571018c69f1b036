"""``check-data``: read a whole data set, as training would, and say all that is wrong with it."""

from argparse import ArgumentError
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.data.image_io import DecodedImage
from lightning_ddpm.data.sources import SPLITS
from lightning_ddpm.data.validation import cache_faults, read_all
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError

ELSEWHERE = ("model", "trainer", "seed_everything", "ckpt_path", "optimizer", "lr_scheduler", "weights_only", "verbose")
"""What a training's config has beside its data."""


def run(arguments: Sequence[str]) -> int:
    """Parse the options and read the data; the exit status: 0, or 1 where something is wrong."""
    parser = ArgumentParser(
        "lightning-ddpm check-data", description="Read all images of a data set.", exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="a training's; its data is what is checked")
    parser.add_class_arguments(ImageDataModule, "data")
    for name in ELSEWHERE:
        parser.add_argument(f"--{name}", type=Any, help="of a config; no part of this")
    try:
        options = parser.parse_args(list(arguments))
        data = parser.instantiate(Namespace(data=options.data)).data  # type: ignore[no-untyped-call]
    except ArgumentError as error:
        raise UserError(f"{error}; check-data --help lists the options") from error
    return check(data)


def check(data: ImageDataModule) -> int:
    """Read every image and say what is wrong, a line each, or what there is.

    Returns:
        the number of images that cannot be used, at most 1: an exit status.
    """
    parts = data.source.image_files(data.root)
    if not parts:
        data.prepare_data()
        n = [len(data.source.open(data.root, split)) for split in SPLITS]
        report(
            f"{n[0]} images of {data.channels}x{data.size}x{data.size} to train on and {n[1]} held out, kept as arrays"
        )
        return 0
    wrong, good = 0, Counter[tuple[str, str, tuple[int, int]]]()
    for files in parts:
        bad = []
        for index, each in enumerate(read_all(files, f"checking {data.root}")):
            if isinstance(each, DecodedImage):
                good[each.format, each.mode, each.size] += 1
            else:
                bad.append(index)
                report(each)
        cache_faults(files, bad)
        wrong += len(bad)
    report(f"{good.total()} images can be used, {wrong} cannot")
    for line in _summary(good):
        report(line)
    return min(wrong, 1)


def _summary(good: Counter[tuple[str, str, tuple[int, int]]]) -> list[str]:
    """How many images there are of which kind, and their smallest and largest sides."""
    if not good:
        return []
    kinds, shapes = Counter[str](), Counter[str]()
    for (form, mode, (width, height)), n in good.items():
        kinds[f"{form} {mode}"] += n
        shapes[f"{width}x{height}"] += n
    short, long = ([pick(size) for _, _, size in good] for pick in (min, max))
    most = ", ".join(f"{n} of {shape}" for shape, n in shapes.most_common(3))
    return [
        "formats and modes: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        f"sizes: short sides {min(short)} to {max(short)}, long sides {min(long)} to {max(long)} pixels; {most}"
        + (", ..." if len(shapes) > 3 else ""),
    ]
