"""``restore``: what is missing in images, and variations of them, by a model that was trained for none of it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lightning_ddpm.console import progress, say
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.data.pictures import open_pictures
from lightning_ddpm.data.sampler import ranges
from lightning_ddpm.diffusion import (
    DDRM,
    Ancestral,
    Degradation,
    FixedSmall,
    Grey,
    Inpainting,
    MarkovSampler,
    Noisy,
    Sampler,
    Smaller,
    Variation,
)
from lightning_ddpm.errors import UserError
from lightning_ddpm.files import require_writable, write_whole
from lightning_ddpm.generation import evaluating
from lightning_ddpm.images import grid, read, save, to_float, to_uint8
from lightning_ddpm.model_options import (
    add_devices,
    add_model,
    conditions,
    launched,
    model_of,
    parse,
    placed,
)
from lightning_ddpm.module import DDPM
from lightning_ddpm.randomness import ImageNoise

SHOWN = 12
"""Images in side_by_side.png, at most."""


class Task(ABC):
    """What is done to images.

    Attributes:
        options: of the command line that are this task's.
        needed: those of them that must be given.
        shape: (channels, size) of the pictures that it takes.
    """

    options: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        self.asked, self.model = asked, model
        self.shape = model.image_shape[:2]

    @abstractmethod
    def begin(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        """For a batch (b, c, h, w) in [-1, 1]: what is given, as large as the model's images, and how it is restored.

        Args:
            x: the pictures, whole ones if they are to be degraded.
            noise: for the degradation.
        """

    def _steps_of(self, default: int) -> MarkovSampler:
        """The sampler that was asked for, or ancestral sampling with as many steps as were."""
        if not self.asked.sampler:
            return Ancestral(FixedSmall(), min(self.asked.steps or default, self.model.schedule.T))
        if not isinstance(self.model.sampler, MarkovSampler):
            raise UserError(
                f"{self.asked.task} goes back and forth, which {type(self.model.sampler).__name__} cannot; take "
                "Ancestral or DDIM, or leave --sampler out"
            )
        return self.model.sampler


class Inpaint(Task):
    """Pixels under a mask are made anew."""

    options = "mask", "box", "passes", "jump", "degrade"

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        super().__init__(asked, model)
        if (asked.mask is None) == (asked.box is None):
            raise UserError("inpaint needs --mask FILE or --box LEFT TOP RIGHT BOTTOM, one of them")
        self.known = ~(self._box() if asked.mask is None else self._picture())
        if not self.known.any():
            raise UserError("the mask leaves no pixel known; sample draws images of which nothing is")
        self.sampler = self._steps_of(100)

    def _box(self) -> Tensor:
        left, top, right, bottom = self.asked.box
        size = self.shape[1]
        if not (0 <= left < right <= size and 0 <= top < bottom <= size):
            raise UserError(f"the box must lie in the picture of {size}x{size}, got {left} {top} {right} {bottom}")
        hole = torch.zeros(1, size, size, dtype=torch.bool)
        hole[:, top:bottom, left:right] = True
        return hole

    def _picture(self) -> Tensor:
        size = self.shape[1]
        try:
            mask = read(self.asked.mask, 1, 1)
            if mask.size == (size, size):
                return read(self.asked.mask, 1, size).pixels > 127
        except UserError as error:
            raise UserError(f"{self.asked.mask}: {error}") from error
        raise UserError(
            f"the mask {self.asked.mask} is {mask.size[0]}x{mask.size[1]} and the model's images are {size}x{size}; "
            "resize it"
        )

    def begin(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        known = self.known.to(x.device)
        inpainting = Inpainting(self.sampler, x, known, self.asked.passes or 5, self.asked.jump or 5)
        return torch.where(known, x, 0.0), inpainting


class Linear(Task):
    """Undoes a linear degradation by DDRM."""

    options: tuple[str, ...] = ("sigma", "degrade")

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        super().__init__(asked, model)
        if asked.sampler:
            raise UserError(f"{asked.task} is done by DDRM, which is a sampler of its own; leave --sampler out")
        self.degradation = self.damage()
        self.steps = min(asked.steps or 20, model.schedule.T)
        whole = torch.zeros(1, *model.image_shape)
        y = self.degradation(whole)
        DDRM(self.degradation, y, asked.sigma or 0.0, self.steps)  # refuses what it cannot undo
        if not asked.degrade:
            self.shape = y.shape[1], y.shape[2]

    @abstractmethod
    def damage(self) -> Degradation:
        """What was done to the images."""

    def begin(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        y, sigma = x, self.asked.sigma or 0.0
        if self.asked.degrade:
            y = self.degradation(x)
            y = y + sigma * noise(y)
        channels, size = self.model.image_shape[:2]
        given = interpolate(y, size, mode="bicubic").clamp(-1, 1) if y.shape[-1] < size else y
        return given.expand(-1, channels, -1, -1), DDRM(self.degradation, y, sigma, self.steps)


class SuperRes(Linear):
    """Larger images; what is given is the mean of each block of factor x factor pixels."""

    options = "factor", "sigma", "degrade"
    needed = ("factor",)

    def damage(self) -> Degradation:
        return Smaller(self.asked.factor)


class Denoise(Linear):
    """Takes Gaussian noise away."""

    needed = ("sigma",)

    def damage(self) -> Degradation:
        return Noisy()


class Colour(Linear):
    """Colours for grey images, which are the mean of the three channels."""

    def damage(self) -> Degradation:
        return Grey()


class Vary(Task):
    """Noise part of the way, and back."""

    options = needed = ("strength",)

    def __init__(self, asked: Namespace, model: DDPM) -> None:
        super().__init__(asked, model)
        self.sampler = self._steps_of(100)
        Variation(self.sampler, torch.zeros(model.image_shape), asked.strength)  # refuses a strength that is none

    def begin(self, x: Tensor, noise: ImageNoise) -> tuple[Tensor, Sampler]:
        return x, Variation(self.sampler, x, self.asked.strength)


TASKS: dict[str, type[Task]] = {
    "inpaint": Inpaint,
    "superres": SuperRes,
    "denoise": Denoise,
    "colour": Colour,
    "vary": Vary,
}


def run(arguments: Sequence[str]) -> None:
    """Parse the options and restore the images."""
    parser = _parser()
    options = parse(parser, arguments, "restore", ["passes", "jump"])
    _check(options)
    model = model_of(parser, options)
    task, asked = TASKS[options.task](options, model), conditions(options, model)
    images = _images(options.images, task)
    require_writable(options.out)
    if any(options.out.glob("*.png")):
        raise UserError(f"{options.out} holds images already; empty it or choose another folder")

    fabric = launched(options)
    n, first = len(images), fabric.is_global_zero
    spent = placed(model, options, fabric)
    figures = torch.zeros(n, 4, dtype=torch.float64, device=fabric.device)
    rows: list[Tensor] = []

    def restored(start: int, stop: int) -> Tensor:
        pixels = _as_channels(images.__getitems__(range(start, stop))[0].to(fabric.device), task.shape[0])
        noise = ImageNoise(options.seed, start, stop, "degradation")
        given, sampler = task.begin(to_float(pixels), noise)
        denoise, x_T, eps = model.beginning((options.seed, start, stop), asked.guidance, asked.labels)
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

    mine = ranges(n, options.seed, options.batch_size, fabric.global_rank, fabric.world_size)
    with evaluating(model), fabric.autocast():
        batches = ((stop - start, (start, restored(start, stop))) for _, start, stop in mine)
        for start, made in progress(batches, sum(stop - start for _, start, stop in mine), options.task, first):
            for index, each in enumerate(made.cpu(), start):
                write_whole(options.out / f"{index:06d}.png", partial(save, each))
    figures = fabric.all_reduce(figures, reduce_op="sum")  # type: ignore[assignment]
    if first:
        shown = torch.cat(rows)
        save(grid(shown.flatten(0, 1), columns=shown.shape[1]), options.out / "side_by_side.png")
        done = sum(stop - start for _, start, stop in mine)
        say(f"wrote {n} images and side_by_side.png in {options.out}: {sum(spent) / done:g} network evaluations each")
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
    add_model(parser, required=True)
    add_devices(parser)
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
    images = open_pictures(folder)
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
    say(f"{'':10} {'PSNR, dB':>9} {'SSIM':>7}")
    say(f"{'restored':10} {means['psnr']:9.2f} {means['ssim']:7.4f}")
    say(f"{'as given':10} {means['psnr_given']:9.2f} {means['ssim_given']:7.4f}")
    each = [dict(zip(names, row, strict=True)) for row in figures.tolist()]
    write_whole(file, lambda out: out.write(json.dumps({"mean": means, "images": each}, indent=2).encode()))
