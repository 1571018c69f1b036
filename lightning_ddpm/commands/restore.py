"""``restore``: inpaint, enlarge, denoise, colorize or vary images with a model that was not trained for it."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from lightning_ddpm.commands import options as model_options
from lightning_ddpm.commands.batch_size import choose_batch_size
from lightning_ddpm.commands.restore_tasks import TASKS, Task, hide_unknown_condition
from lightning_ddpm.commands.sample_folder import UNFINISHED, check_folder, delete_images, is_unfinished, start_set
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_io import arrange_grid, save_image, to_float, to_uint8
from lightning_ddpm.data.numbered_images import write_images
from lightning_ddpm.data.sample_images import open_sample_folder
from lightning_ddpm.data.sharding import split_ranges
from lightning_ddpm.metrics.pair_quality import measure_pairs
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.models.image_generator import require_uint8
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import flush_files, write_atomically, write_json
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.random import ImageNoise
from lightning_ddpm.utils.run_files import SIDE_BY_SIDE
from lightning_ddpm.utils.yaml_text import build_parser

SHOWN = 12
"""Largest number of images in side_by_side.png."""
METRICS_FILE = "metrics.json"
METRICS = "psnr", "ssim", "psnr_given", "ssim_given"
"""What that file has of each image."""
TITLES = "given", "restored", "original"
"""Columns of side_by_side.png; the last one is there with --degrade only."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and restore the images."""
    parser = _build_parser()
    options = model_options.parse_options(parser, arguments, "restore", ["passes"])
    _check_task_options(options)
    model = model_options.load_model(parser, options)
    if not isinstance(model, DDPM):
        raise UserError(f"restore needs a DDPM, and {options.ckpt} holds {type(model).__name__}; give another --ckpt")
    require_uint8(model, "restore", "give another --ckpt")
    if model.condition_format.image:
        raise UserError(
            f"restore is for models that were not trained for it, and {options.ckpt} generates images from images; use "
            "sample --condition_images DIR"
        )
    task, conditions = TASKS[options.task](options, model), model_options.read_conditions(options, model)
    images = _open_images(options.images, task)
    check_folder(options.out, SIDE_BY_SIDE, METRICS_FILE)
    interrupted = is_unfinished(options.out)
    if not interrupted and any(options.out.glob("*.png")):
        raise UserError(f"{options.out} holds images already; empty it or choose another folder")

    fabric = model_options.launch_fabric(options)
    n, ranks = len(images), model_options.get_ranks(fabric)
    options.batch_size = choose_batch_size(model, n, conditions, options, fabric)
    batch_sizes = model_options.place_model(model, options, fabric)
    request = hide_unknown_condition(conditions.request(n, options), model)
    metrics = torch.zeros(n, 4, dtype=torch.float64, device=fabric.device)
    rows: list[Tensor] = []

    def restore(start: int, stop: int) -> Tensor:
        pixels = _expand_channels(images.__getitems__(range(start, stop))[0].to(fabric.device), task.shape[0])
        noise = ImageNoise(options.seed, start, stop, "degradation")
        given, sampler = task.prepare(to_float(pixels), noise)
        denoise, x_T, eps = model.prepare_sampling(request, start, stop)
        restored = to_uint8(sampler.sample(denoise, x_T, eps))
        columns = [to_uint8(given), restored]
        if options.degrade:
            columns.append(pixels)
            metrics[start:stop] = torch.cat([measure_pairs(restored, pixels), measure_pairs(columns[0], pixels)], dim=1)
        if start < SHOWN:
            rows.append(torch.stack(columns, dim=1)[: SHOWN - start].cpu())
        return restored

    manifest = {"task": options.task, "checkpoint": str(options.ckpt), "images": images.fingerprint}
    if ranks.is_first:
        if interrupted:
            report(f"the restore in {options.out} was interrupted; it starts again")
            delete_images(options.out)
        start_set(options.out, manifest | {UNFINISHED: True})
    fabric.barrier()
    shard = split_ranges(n, options.seed, options.batch_size, ranks)
    restored_here = sum(stop - start for _, start, stop in shard)
    with evaluation_mode(model), fabric.autocast():
        batches = ((stop - start, (start, restore(start, stop))) for _, start, stop in shard)
        for start, restored in show_progress(batches, restored_here, options.task, ranks.is_first):
            write_images(options.out, start, restored)
    flush_files()
    metrics = ranks.reduce(metrics)
    if ranks.is_first:
        shown = torch.cat(rows)
        grid = arrange_grid(shown.flatten(0, 1), shown.shape[1], TITLES[: shown.shape[1]])
        if options.degrade:
            _report_metrics(metrics.cpu(), options.out / METRICS_FILE)
        write_atomically(options.out / SIDE_BY_SIDE, partial(save_image, grid))
        start_set(options.out, manifest)
        nfe = sum(batch_sizes) / restored_here
        report(f"wrote {n} images and {SIDE_BY_SIDE} in {options.out}: {nfe:g} network evaluations each")


def _build_parser() -> ArgumentParser:
    description = "Inpaint, enlarge, denoise, colorize or vary images."
    parser = build_parser("restore", description)
    add = parser.add_argument
    add("--task", required=True, help=", ".join(TASKS))
    add(
        "--images",
        type=resolve_path,
        required=True,
        help="folder of images of the model's size (superres: smaller)",
    )
    add("--out", type=resolve_path, required=True, help="folder for 000000.png, ... in the order of the images' paths")
    add("--degrade", action="store_true", help="the images are originals: degrade them first, and report PSNR and SSIM")
    add("--mask", type=resolve_path, help="inpaint: an image, white where pixels are to be generated")
    add("--box", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="inpaint: a box instead of a mask")
    add("--passes", type=int, help="inpaint: number of times each step is made; default: 5")
    add("--factor", type=int, help="superres: ratio of the image sizes")
    add("--sigma", type=float, help="standard deviation of the noise in the images, where black is -1 and white 1")
    add("--strength", type=float, help="sdedit: from 0, the image itself, to 1, a new one")
    model_options.add_model_options(parser, required=True)
    model_options.add_device_options(parser)
    return parser


def _check_task_options(options: Namespace) -> None:
    """Raise UserError for an unknown task, an option of another task, or a missing one."""
    if options.task not in TASKS:
        raise UserError(f"there is no task {options.task!r}; there are {', '.join(TASKS)}")
    task = TASKS[options.task]
    for name in sorted({name for each in TASKS.values() for name in each.option_names}):
        if model_options.is_given(options[name]) and name not in task.option_names:
            others = ", ".join(other for other, each in TASKS.items() if name in each.option_names)
            raise UserError(f"--{name} is an option of {others}, and the task is {options.task}; leave it out")
        if options[name] is None and name in task.required:
            raise UserError(f"{options.task} needs --{name}; restore --help describes it")


def _open_images(folder: Path, task: Task) -> ImageDataset:
    """Open the images; UserError if the task cannot take their shape."""
    images = open_sample_folder(folder)
    pixels = images.__getitems__([0])[0]
    channels, *sides = task.shape
    if list(pixels.shape[2:]) != sides:
        found, taken = (f"{width}x{height}" for height, width in (pixels.shape[2:], sides))
        raise UserError(
            f"the images in {folder} are {found} and {task.options.task} takes {taken} here"
            f"{'' if sides[0] == sides[1] else ' (width x height)'}; resize them"
        )
    _expand_channels(pixels, channels)
    return images


def _expand_channels(pixels: Tensor, channels: int) -> Tensor:
    """Convert grayscale images to RGB where the task takes RGB."""
    if pixels.shape[1] > channels:
        raise UserError("the images are RGB and the task takes grayscale here; save them as grayscale")
    return pixels.expand(-1, channels, -1, -1)


def _report_metrics(metrics: Tensor, file: Path) -> None:
    """Print the means of PSNR and SSIM, and write them and those of each image as JSON.

    The PSNR of an image that is restored exactly is infinite: such images are counted, and their PSNR is null.
    """
    finite = metrics.isfinite()
    means = {
        name: float(values[found].mean()) if found.any() else None
        for name, values, found in zip(METRICS, metrics.T, finite.T, strict=True)
    }
    exact = {name: int((~finite[:, METRICS.index(name)]).sum()) for name in ("psnr", "psnr_given")}
    report(f"{'':10} {'PSNR, dB':>9} {'SSIM':>7}")
    for row, psnr, ssim in (("restored", "psnr", "ssim"), ("given", "psnr_given", "ssim_given")):
        decibels = "exact" if means[psnr] is None else f"{means[psnr]:.2f}"
        note = f"  PSNR without {exact[psnr]} of {len(metrics)} images, which are exact" if exact[psnr] else ""
        report(f"{row:10} {decibels:>9} {means[ssim]:7.4f}{note}")
    each = [
        {name: value if math.isfinite(value) else None for name, value in zip(METRICS, row, strict=True)}
        for row in metrics.tolist()
    ]
    write_json(file, {"mean": means, "exact": exact, "images": each})
