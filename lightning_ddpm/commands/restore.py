"""``restore``: what is missing in images, and variations of them, by a model that was trained for none of it."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lightning_ddpm.commands.options import (
    add_device_options,
    add_model_options,
    launch_fabric,
    load_model,
    parse_options,
    place_model,
    read_conditions,
)
from lightning_ddpm.commands.restore_tasks import TASKS, Task
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.image_io import arrange_grid, save_image, to_float, to_uint8
from lightning_ddpm.data.sample_images import open_sample_folder
from lightning_ddpm.data.sharding import split_ranges
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.console import report, show_progress
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable, write_atomically
from lightning_ddpm.utils.random import ImageNoise

SHOWN = 12
"""Images in side_by_side.png, at most."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and restore the images."""
    parser = _parser()
    options = parse_options(parser, arguments, "restore", ["passes", "jump"])
    _check(options)
    model = load_model(parser, options)
    task, asked = TASKS[options.task](options, model), read_conditions(options, model)
    images = _images(options.images, task)
    check_writable(options.out)
    if any(options.out.glob("*.png")):
        raise UserError(f"{options.out} holds images already; empty it or choose another folder")

    fabric = launch_fabric(options)
    n, first = len(images), fabric.is_global_zero
    spent = place_model(model, options, fabric)
    request = asked.request(n, options)
    figures = torch.zeros(n, 4, dtype=torch.float64, device=fabric.device)
    rows: list[Tensor] = []

    def restored(start: int, stop: int) -> Tensor:
        pixels = _as_channels(images.__getitems__(range(start, stop))[0].to(fabric.device), task.shape[0])
        noise = ImageNoise(options.seed, start, stop, "degradation")
        given, sampler = task.prepare(to_float(pixels), noise)
        denoise, x_T, eps = model.prepare_sampling(request, start, stop)
        if model.class_names and asked.labels is None:
            denoise = model.denoiser  # nobody knows the pictures' classes
        made = to_uint8(sampler.sample(denoise, x_T, eps))
        columns = [to_uint8(given), made]
        if options.degrade:
            columns.append(pixels)
            figures[start:stop] = torch.cat([_figures(made, pixels), _figures(columns[0], pixels)], dim=1)
        if start < SHOWN:
            rows.append(torch.stack(columns, dim=1)[: SHOWN - start].cpu())
        return made

    mine = split_ranges(n, options.seed, options.batch_size, fabric.global_rank, fabric.world_size)
    with evaluation_mode(model), fabric.autocast():
        batches = ((stop - start, (start, restored(start, stop))) for _, start, stop in mine)
        for start, made in show_progress(batches, sum(stop - start for _, start, stop in mine), options.task, first):
            for index, each in enumerate(made.cpu(), start):
                write_atomically(options.out / f"{index:06d}.png", partial(save_image, each))
    figures = fabric.all_reduce(figures, reduce_op="sum")  # type: ignore[assignment]
    if first:
        shown = torch.cat(rows)
        save_image(arrange_grid(shown.flatten(0, 1), columns=shown.shape[1]), options.out / "side_by_side.png")
        done = sum(stop - start for _, start, stop in mine)
        report(
            f"wrote {n} images and side_by_side.png in {options.out}: {sum(spent) / done:g} network evaluations each"
        )
        if options.degrade:
            _report(figures.cpu(), options.out / "figures.json")


def _parser() -> ArgumentParser:
    description = "Fill in, enlarge, denoise, colour or vary images."
    parser = ArgumentParser("lightning-ddpm restore", description=description, exit_on_error=False)
    add = parser.add_argument
    add("--task", required=True, help=", ".join(TASKS))
    add("--images", type=Path, required=True, help="folder of square pictures of the model's size (superres: smaller)")
    add("--out", type=Path, required=True, help="folder for 000000.png, ... in the order of the pictures' paths")
    add("--degrade", action="store_true", help="the pictures are whole: damage them first, and say how near they come")
    add("--mask", type=Path, help="inpaint: a picture, white where pixels are to be made anew")
    add("--box", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="inpaint: the same, as a box")
    add("--passes", type=int, help="inpaint: how often each step is made; default: 5")
    add("--jump", type=int, help="inpaint: steps made at a time; default: 5")
    add("--factor", type=int, help="superres: how many times as large")
    add("--sigma", type=float, help="of the noise in the pictures, of which black is -1 and white 1")
    add("--strength", type=float, help="vary: from 0, the picture itself, to 1, a new one")
    add_model_options(parser, required=True)
    add_device_options(parser)
    return parser


def _check(options: Namespace) -> None:
    if options.task not in TASKS:
        raise UserError(f"there is no task {options.task!r}; there are {', '.join(TASKS)}")
    task = TASKS[options.task]
    for name in sorted({name for each in TASKS.values() for name in each.options}):
        if options[name] not in (None, False) and name not in task.options:
            others = ", ".join(name_ for name_, each in TASKS.items() if name in each.options)
            raise UserError(f"--{name} is of {others}, and the task is {options.task}; leave it out")
        if options[name] is None and name in task.needed:
            raise UserError(f"{options.task} needs --{name}; restore --help says what it is")


def _images(folder: Path, task: Task) -> ImageDataset:
    """The pictures, which must be such as the task takes."""
    images = open_sample_folder(folder)
    pixels = images.__getitems__([0])[0]
    channels, size = task.shape
    if pixels.shape[-1] != size:
        raise UserError(
            f"the pictures in {folder} are {pixels.shape[-1]}x{pixels.shape[-1]} and {task.asked.task} takes "
            f"{size}x{size} here; resize them"
        )
    _as_channels(pixels, channels)
    return images


def _as_channels(pixels: Tensor, channels: int) -> Tensor:
    """Grey pictures as RGB where those are wanted."""
    if pixels.shape[1] > channels:
        raise UserError("the pictures have colours, and grey ones are wanted here; save them as grey")
    return pixels.expand(-1, channels, -1, -1)


def _figures(made: Tensor, original: Tensor) -> Tensor:
    """PSNR in dB and SSIM of each image, (b, 2) float64."""
    a, b = made.double(), original.double()
    psnr = peak_signal_noise_ratio(a, b, data_range=255.0, dim=(1, 2, 3), reduction="none")
    ssim = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
    return torch.stack([psnr, torch.as_tensor(ssim)], dim=1)


def _report(figures: Tensor, file: Path) -> None:
    names = "psnr", "ssim", "psnr_given", "ssim_given"
    means = dict(zip(names, figures.mean(0).tolist(), strict=True))
    report(f"{'':10} {'PSNR, dB':>9} {'SSIM':>7}")
    report(f"{'restored':10} {means['psnr']:9.2f} {means['ssim']:7.4f}")
    report(f"{'as given':10} {means['psnr_given']:9.2f} {means['ssim_given']:7.4f}")
    each = [dict(zip(names, row, strict=True)) for row in figures.tolist()]
    write_atomically(file, lambda out: out.write(json.dumps({"mean": means, "images": each}, indent=2).encode()))
