"""``sample``: generate images from a checkpoint, which holds everything that is needed."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch import Tensor

from lightning_ddpm.commands import options as model_options
from lightning_ddpm.commands import sample_folder
from lightning_ddpm.commands.batch_size import choose_batch_size
from lightning_ddpm.commands.class_names import list_classes
from lightning_ddpm.commands.condition_files import require_conditions
from lightning_ddpm.commands.parsing import instantiate
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.data.numbered_images import (
    choose_suffix,
    get_image_path,
    read_first,
    read_numbered,
    write_images,
)
from lightning_ddpm.data.previews import Preview, choose_preview
from lightning_ddpm.data.sample_images import write_npz_samples
from lightning_ddpm.data.value_range import to_array
from lightning_ddpm.models.conditioning import show_given
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode, generate_batches
from lightning_ddpm.models.image_generator import ImageGenerator, name_sampler
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.devices import name_device
from lightning_ddpm.utils.files import check_output_file, flush_files, write_atomically
from lightning_ddpm.utils.hashing import hash_file
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.run_files import GRID, TRAJECTORY
from lightning_ddpm.utils.yaml_text import build_parser

SHOWN = 64
"""Largest number of images in grid.png."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and generate the images."""
    parser = _build_parser()
    options = model_options.parse_options(parser, arguments, "sample", ["n"])
    out = options.out
    model = model_options.load_model(parser, options)
    conditions = model_options.read_conditions(options, model)
    require_conditions(model, conditions.given, conditions.guidance)
    n = options.n = options.n or (conditions.given.n if conditions.given else SHOWN)
    preview = _read_preview(parser, options, model)
    sample_folder.check_folder(out, GRID)
    sample_folder.check_no_larger_set(out, options.n)
    if options.trajectory:
        check_output_file(options.trajectory, "--trajectory", [".gif"])
    if options.npz:
        check_output_file(options.npz, "--npz", [".npz"])
    suffix = choose_suffix(model.image_shape[0], model.values, options.format)

    fabric = model_options.launch_fabric(options)
    options.batch_size = options.batch_size or sample_folder.read_batch_size(out)
    options.batch_size = choose_batch_size(model, n, conditions, options, fabric)
    ranks, request = model_options.get_ranks(fabric), conditions.request(n, options)
    manifest = {
        "checkpoint": hash_file(options.ckpt),
        "weights": "raw" if options.raw else "EMA",
        "sampler": name_sampler(model),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "device": name_device(fabric.device),  # its roundings, and of a CPU and a GPU the random numbers
        "precision": options.precision,
    } | model_options.describe_clipping(model)
    manifest |= conditions.describe()
    manifest |= {"network": "compiled"} if options.compile else {}
    manifest |= {"format": suffix} if suffix != choose_suffix(model.image_shape[0], model.values) else {}
    sample_folder.check_same_set(out, manifest)
    done, damaged = sample_folder.find_complete_batches(out, n, options.batch_size, model.image_shape, model.values)
    todo = n - sum(min(options.batch_size, n - start) for start in done)
    fabric.barrier()  # no rank writes before every rank has listed the existing images
    if ranks.is_first:
        report(model_options.describe_generation(model, n, options.raw, conditions))
        if done:
            report(f"{n - todo} of them are in {out} already")
        if damaged:
            report(f"{damaged} damaged images in {out} are generated again, with their batches")
        sample_folder.start_set(out, manifest)
    batch_sizes = model_options.place_model(model, options, fabric)
    images = generate_batches(model, request, ranks, fabric.autocast, done)
    batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
    generated = 0
    for start, pixels in show_progress(batches, ranks.share(todo), "sampling", ranks.is_first):
        generated += len(pixels)
        write_images(out, start, pixels, model.values, suffix)
    flush_files()
    fabric.barrier()
    if not ranks.is_first:
        return
    shown, labels = min(n, SHOWN), conditions.labels or []
    titles = [conditions.names[label] for label in labels[:shown]] if len(labels) > 1 else None
    titles = None if conditions.given else titles
    columns = len(titles) if titles else None
    pixels = read_first(out, shown, suffix, model.values)
    if isinstance(model, DDPM) and (image := conditions.read_image(shown)) is not None:  # each beside its condition
        given = show_given(image, model.condition_values, model.image_shape, model.values)
        pixels, columns = torch.stack([given, pixels], dim=1).flatten(0, 1), 2 * math.ceil(shown**0.5 / 2)
    write_atomically(out / GRID, partial(save_image, preview.arrange(model.values, pixels, columns, titles)))
    cost = f": {sum(batch_sizes) / generated:g} network evaluations each" if batch_sizes and generated else ""
    report(f"wrote {f'{todo} images and ' if todo else ''}{GRID} in {out}{cost}")
    if options.npz:
        paths = (get_image_path(out, index, suffix) for index in range(n))
        arrays = (to_array(read_numbered(path, model.values), model.values) for path in paths)
        write_npz_samples(options.npz, arrays, n, model.image_shape)
        report(f"wrote {options.npz}: arr_0 (n, height, width, channels)")
    if options.trajectory and isinstance(model, DDPM):  # load_model has refused it for others
        with evaluation_mode(model), fabric.autocast():
            _animate(model, conditions.request(shown, options), options.trajectory, preview, columns)
        report(f"wrote {options.trajectory}")


def _build_parser() -> ArgumentParser:
    description = "Generate images from a checkpoint."
    parser = build_parser("sample", description)
    add = parser.add_argument
    add(
        "--out",
        type=resolve_path,
        required=True,
        help="folder for 000000.png, 000001.png, ... (.npy for values that a PNG does not hold) and grid.png",
    )
    add(
        "--format",
        type=Literal["png", "npy", "tiff"],
        help="format of the images, which keeps their type and units; default: png where it can hold them, else npy",
    )
    add("--npz", type=resolve_path, metavar="FILE.npz", help="write all images as one array, too, as ADM does")
    add("--n", type=int, help=f"number of images; default: {SHOWN}, or one for each --condition")
    model_options.add_model_options(parser, required=True)
    parser.add_subclass_arguments(
        Preview, "preview", required=False, help=f"how grid.png shows the images: {list_classes(Preview)}"
    )
    add(
        "--trajectory",
        type=resolve_path,
        metavar="FILE.gif",
        help="write an animation of x_T ... x_0 of the first images",
    )
    model_options.add_device_options(parser)
    return parser


def _read_preview(parser: ArgumentParser, options: Namespace, model: ImageGenerator) -> Preview:
    """Return how the grid shows the images; UserError if it cannot."""
    preview = choose_preview(model.values, model.image_shape[0])
    if options.preview:
        preview = instantiate(parser, Namespace(preview=options.preview)).preview  # type: ignore[no-untyped-call]
    preview.check(model.image_shape, min(options.n, SHOWN))
    return preview


def _animate(model: DDPM, request: SampleRequest, path: Path, preview: Preview, columns: int | None) -> None:
    """Write x_T ... x_0 of the request's images as an animation that stops at its last frame."""
    denoise, x_T, noise = model.prepare_sampling(request, 0, request.n)
    chain: list[Tensor] = [x_T, *model.sampler.trajectory(denoise, x_T, noise)]
    chain = [*chain[:: max(1, len(chain) // 60)], chain[-1]]
    grids = (preview.arrange(model.values, model.values.to_data(x), columns) for x in chain)
    first, *others = [Image.fromarray(grid.permute(1, 2, 0).numpy()) for grid in grids]
    durations = [60] * len(others) + [3000]
    settings: dict[str, Any] = {"append_images": others, "duration": durations, "loop": 0, "comment": TRAJECTORY}
    write_atomically(path, partial(first.save, format="GIF", save_all=True, **settings))
