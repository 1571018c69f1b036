"""``sample``: generate images from a checkpoint, which holds everything that is needed."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

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
from lightning_ddpm.commands.sample_folder import (
    check_no_larger_set,
    check_same_set,
    find_complete_batches,
    get_image_path,
    start_set,
)
from lightning_ddpm.data.image_io import arrange_grid, save_image, to_uint8
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode, generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.files import check_writable, write_atomically
from lightning_ddpm.utils.hashing import hash_file

SHOWN = 64
"""Largest number of images in grid.png."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and generate the images."""
    parser = _build_parser()
    options = parse_options(parser, arguments, "sample", ["n"])
    model = load_model(parser, options)
    conditions = read_conditions(options, model)
    check_writable(options.out)
    check_no_larger_set(options.out, options.n)

    fabric = launch_fabric(options)
    ranks, request = get_ranks(fabric), conditions.request(options.n, options)
    manifest = {
        "checkpoint": hash_file(options.ckpt),
        "weights": "raw" if options.raw else "EMA",
        "sampler": str(model.sampler),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "device": fabric.device.type,  # each kind of device has its own random numbers
        "precision": options.precision,
    } | conditions.describe()
    manifest |= {"network": "compiled"} if options.compile else {}
    check_same_set(options.out, manifest)
    done = find_complete_batches(options.out, options.n, options.batch_size)
    todo = options.n - sum(min(options.batch_size, options.n - start) for start in done)
    fabric.barrier()  # no rank writes before every rank has listed the existing images
    if ranks.is_first:
        report(describe_generation(model, options.n, options.raw, conditions))
        if done:
            report(f"{options.n - todo} of them are in {options.out} already")
        start_set(options.out, manifest)
    batch_sizes = place_model(model, options, fabric)
    images = generate_batches(model, request, ranks, fabric.autocast, done)
    batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
    generated = 0
    for start, pixels in show_progress(batches, ranks.share(todo), "sampling", ranks.is_first):
        generated += len(pixels)
        for index, each in enumerate(pixels.cpu(), start):
            write_atomically(get_image_path(options.out, index), partial(save_image, each))
    fabric.barrier()
    if not ranks.is_first:
        return
    shown = min(options.n, SHOWN)
    titles = _list_column_titles(conditions, shown)
    columns = len(titles) if titles else None
    pixels = torch.stack([pil_to_tensor(Image.open(get_image_path(options.out, index))) for index in range(shown)])
    save_image(arrange_grid(pixels, columns, titles), options.out / "grid.png")
    cost = f": {sum(batch_sizes) / generated:g} network evaluations each" if generated else ""
    report(f"wrote {todo} images and grid.png in {options.out}{cost}")
    if options.trajectory:
        with evaluation_mode(model), fabric.autocast():
            _animate(model, conditions.request(shown, options), options.trajectory, columns)
        report(f"wrote {options.trajectory}")


def _build_parser() -> ArgumentParser:
    description = "Generate images from a checkpoint."
    parser = ArgumentParser("lightning-ddpm sample", description=description, exit_on_error=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for 000000.png, 000001.png, ... and grid.png")
    add("--n", type=int, default=64, help="number of images")
    add_model_options(parser, required=True)
    add("--trajectory", type=Path, metavar="FILE.gif", help="write an animation of x_T ... x_0 of the first images")
    add_device_options(parser)
    return parser


def _list_column_titles(conditions: Conditions, n: int) -> list[str] | None:
    """Return the class of each column of a grid of n images; ``None`` unless several classes were requested."""
    labels = conditions.labels or []
    return [conditions.names[label] for label in labels[:n]] if len(labels) > 1 else None


def _animate(model: DDPM, request: SampleRequest, path: Path, columns: int | None, frames: int = 60) -> None:
    """Write x_T ... x_0 of the request's images as an animation that stops at its last frame."""
    denoise, x_T, noise = model.prepare_sampling(request, 0, request.n)
    chain: list[Tensor] = [x_T, *model.sampler.trajectory(denoise, x_T, noise)]
    chain = [*chain[:: max(1, len(chain) // frames)], chain[-1]]
    grids = (arrange_grid(to_uint8(x).cpu(), columns) for x in chain)
    first, *others = [Image.fromarray(grid.permute(1, 2, 0).numpy()) for grid in grids]
    durations = [60] * len(others) + [3000]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)
