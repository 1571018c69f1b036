"""``sample``: images from a checkpoint, which says all that is needed."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_ddpm.commands.options import (
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
from lightning_ddpm.data.image_io import arrange_grid, save_image, to_uint8
from lightning_ddpm.data.sharding import split_ranges
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode, generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable, write_atomically
from lightning_ddpm.utils.hashing import hash_file

SHOWN = 64
"""Images in grid.png, at most."""
NUMBERED = "[0-9]" * 6 + ".png"
MANIFEST = "set.json"
"""Says which set a folder's images are of."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and draw the images."""
    parser = _parser()
    options = parse_options(parser, arguments, "sample", ["n"])
    model = load_model(parser, options)
    asked = read_conditions(options, model)
    check_writable(options.out)
    _refuse_others(options.out, options.n)
    there = _read_manifest(options.out)

    fabric = launch_fabric(options)
    first = fabric.is_global_zero
    ours = {
        "checkpoint": hash_file(options.ckpt),
        "weights": "raw" if options.raw else "EMA",
        "sampler": str(model.sampler),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "device": fabric.device.type,  # its random numbers are its own
        "precision": options.precision,
    } | asked.describe()
    ours |= {"network": "compiled"} if options.compile else {}
    _refuse_another_set(options.out, there, ours)
    done = _done(options.out, options.n, options.batch_size)
    kept = sum(min(options.batch_size, options.n - start) for start in done)
    fabric.barrier()  # before anybody writes what another would take for done
    if first:
        report(describe_generation(model, options.n, options.raw, asked))
        if kept:
            report(f"{kept} of them are in {options.out} already")
        _begin(options.out, ours)
    spent = place_model(model, options, fabric)
    ranks, request = get_ranks(fabric), asked.request(options.n, options)
    images = generate_batches(model, request, ranks, fabric.autocast, done)
    batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
    drawn = 0
    for start, pixels in show_progress(batches, ranks.share(options.n - kept), "sampling", first):
        drawn += len(pixels)
        for index, each in enumerate(pixels.cpu(), start):
            write_atomically(_file(options.out, index), partial(save_image, each))
    fabric.barrier()
    if not first:
        return
    shown = [pil_to_tensor(Image.open(_file(options.out, index))) for index in range(min(options.n, SHOWN))]
    save_image(arrange_grid(torch.stack(shown), _columns(asked)), options.out / "grid.png")
    cost = f": {sum(spent) / drawn:g} network evaluations each" if drawn else ""
    report(f"wrote {options.n - kept} images and grid.png in {options.out}{cost}")
    if options.trajectory:
        with evaluation_mode(model), fabric.autocast():
            _animate(model, asked.request(min(options.n, SHOWN), options), options.trajectory, _columns(asked))
        report(f"wrote {options.trajectory}")


def _parser() -> ArgumentParser:
    description = "Draw images from a checkpoint."
    parser = ArgumentParser("lightning-ddpm sample", description=description, exit_on_error=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for 000000.png, 000001.png, ... and grid.png")
    add("--n", type=int, default=64, help="number of images")
    add_model_options(parser, required=True)
    add("--trajectory", type=Path, metavar="FILE.gif", help="also show x_T ... x_0 of the first images")
    add_device_options(parser)
    return parser


def _columns(asked: Conditions) -> int | None:
    """Of the grid: each class that was asked for has one."""
    return min(len(asked.labels), SHOWN) if asked.labels and len(asked.labels) > 1 else None


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _refuse_others(folder: Path, n: int) -> None:
    """A folder with images of a larger set would pass for one set with ours."""
    others = [path.name for path in folder.glob(NUMBERED) if int(path.stem) >= n]
    if others:
        raise UserError(f"{folder} holds {min(others)} and more of a larger set; empty it or choose another folder")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Which set the folder's images are of, as :func:`_begin` wrote it; ``None`` where nothing says so."""
    try:
        said = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _refuse_another_set(folder: Path, there: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    """Images are gone on with only where they are known to be of this very set."""
    if there == ours or not any(folder.glob(NUMBERED)):
        return
    if there is None:
        what = f"holds images, and no {MANIFEST} says which set they are of"
    else:
        name = next(each for each in (*ours, *there) if there.get(each) != ours.get(each))
        what = f"holds images of another set: their {name} is {there.get(name)}, and {ours.get(name)} is asked for"
    raise UserError(f"{folder} {what}; empty it or choose another folder")


def _done(folder: Path, n: int, batch_size: int) -> set[int]:
    """The first images of the batches that are there completely."""
    there = {int(path.stem) for path in folder.glob(NUMBERED)}
    return {start for _, start, stop in split_ranges(n, 0, batch_size, 0, 1) if there.issuperset(range(start, stop))}


def _begin(folder: Path, ours: dict[str, Any]) -> None:
    """Say which set the images are of, and clear away what an interrupted one left half written."""
    for path in folder.glob(f".{NUMBERED}.*"):
        path.unlink(missing_ok=True)
    write_atomically(folder / MANIFEST, lambda file: file.write(json.dumps(ours, indent=2).encode()))


def _animate(model: DDPM, request: SampleRequest, path: Path, columns: int | None, frames: int = 60) -> None:
    """x_T ... x_0 of the first n images as an animation that stays on its last frame."""
    denoise, x_T, noise = model.prepare_sampling(request, 0, request.n)
    chain: list[Tensor] = [x_T, *model.sampler.trajectory(denoise, x_T, noise)]
    kept = [*chain[:: max(1, len(chain) // frames)], chain[-1]]
    pictures = [Image.fromarray(arrange_grid(to_uint8(x).cpu(), columns).permute(1, 2, 0).numpy()) for x in kept]
    durations = [60] * (len(pictures) - 1) + [3000]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
