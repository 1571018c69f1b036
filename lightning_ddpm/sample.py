"""``sample``: images from a checkpoint, which says all that is needed."""

import re
from argparse import ArgumentError
from collections.abc import Sequence
from inspect import isabstract
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_ddpm.checkpoint import load
from lightning_ddpm.console import progress, say
from lightning_ddpm.diffusion import DDIM, MarkovSampler, Sampler
from lightning_ddpm.errors import UserError
from lightning_ddpm.files import require_writable
from lightning_ddpm.generation import evaluating, generate
from lightning_ddpm.images import grid, save, to_uint8
from lightning_ddpm.module import DDPM
from lightning_ddpm.randomness import ImageNoise

SHOWN = 64
"""Images in grid.png, at most."""


def run(arguments: Sequence[str]) -> None:
    """Parse the options and draw the images."""
    parser = _parser()
    try:
        options = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(_explain(str(error))) from error
    for name in ("n", "batch_size", "devices"):
        if options[name] < 1:
            raise UserError(f"--{name} must be at least 1, got {options[name]}")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps must be at least 1, got {options.steps}")
    if options.sampler and options.steps is not None:
        if "steps" not in options.sampler.init_args:
            raise UserError(f"{options.sampler.class_path} takes no --steps; leave it out")
        options.sampler.init_args.steps = options.steps
    model = load(options.ckpt, DDPM, raw=options.raw)
    if options.sampler:
        model.sampler = parser.instantiate(options).sampler
    elif options.steps is not None and options.steps != model.sampler.evaluations(model.schedule.T):
        model.sampler = DDIM(options.steps)
    evaluations = model.sampler.evaluations(model.schedule.T)
    require_writable(options.out)
    _refuse_others(options.out, options.n)

    strategy = "ddp" if options.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=options.accelerator, strategy=strategy, devices=options.devices, precision=options.precision
    )
    fabric.launch()
    model.to(fabric.device)
    first = fabric.is_global_zero
    if first:
        weights = "raw" if options.raw else "EMA"
        cost = "as many network evaluations as they take" if evaluations is None else f"{evaluations} evaluations each"
        say(f"{options.n} images with {weights} weights by {model.sampler}: {cost}")
    spent = _count_evaluations(model)
    images = generate(
        *(model, options.n, options.seed, options.batch_size, fabric.global_rank, fabric.world_size),
        context=fabric.autocast,
    )
    batches = ((stop - start, (start, pixels)) for (_, start, stop), pixels in images)
    drawn = 0
    for start, pixels in progress(batches, -(-options.n // fabric.world_size), "sampling", first):
        drawn += len(pixels)
        for index, each in enumerate(pixels.cpu(), start):
            save(each, _file(options.out, index))
    fabric.barrier()
    if not first:
        return
    shown = [pil_to_tensor(Image.open(_file(options.out, index))) for index in range(min(options.n, SHOWN))]
    save(grid(torch.stack(shown)), options.out / "grid.png")
    say(f"wrote {options.n} images and grid.png in {options.out}: {sum(spent) / drawn:g} network evaluations each")
    if options.trajectory:
        with evaluating(model), fabric.autocast():
            _animate(model, min(options.n, SHOWN), options.seed, options.trajectory)
        say(f"wrote {options.trajectory}")


def _parser() -> ArgumentParser:
    description = "Draw images from a checkpoint."
    parser = ArgumentParser("lightning-ddpm sample", description=description, exit_on_error=False)
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="the checkpoint; it says which model it is of")
    add("--out", type=Path, required=True, help="folder for 000000.png, 000001.png, ... and grid.png")
    add("--n", type=int, default=64, help="number of images")
    add("--seed", type=int, default=0, help="of the set: image i of a seed is always the same")
    add("--steps", type=int, help="of the sampler; alone: by DDIM; default: the checkpoint's own sampler")
    parser.add_subclass_arguments(
        Sampler, "sampler", required=False, help="DDIM, DPMSolverPP, Heun, ...; --sampler.help NAME lists its options"
    )
    add("--batch_size", type=int, default=64, help="images at a time on each device")
    add("--raw", action="store_true", help="weights as trained instead of their moving average")
    add("--trajectory", type=Path, metavar="FILE.gif", help="also show x_T ... x_0 of the first images")
    add("--accelerator", default="auto", help="cpu, cuda, mps; auto: what there is")
    add("--devices", type=int, default=1, help="how many")
    add("--precision", default="32-true", help="of the network: 32-true, bf16-mixed, 16-mixed")
    return parser


def _explain(message: str) -> str:
    """What the parser found wrong, in a sentence; of a sampler it tells every way of reading it that failed."""
    if 'key "sampler' not in message:
        return f"{message}; sample --help lists the options"
    missing = re.search(r"arguments are required: (\w+)", message)
    if missing:
        return f"the sampler needs --sampler.{missing[1]}; sample --sampler.help NAME lists its options"
    known = (*Sampler.__subclasses__(), *MarkovSampler.__subclasses__())
    names = ", ".join(sorted(each.__name__ for each in known if not isabstract(each)))
    return f"there is no such sampler, or it has no such option; there are {names}; --sampler.help NAME says more"


def _count_evaluations(model: DDPM) -> list[int]:
    """A list that grows by the number of images at every call of the network."""
    counts: list[int] = []
    model.network.register_forward_pre_hook(lambda network, inputs: counts.append(len(inputs[0])))
    return counts


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _refuse_others(folder: Path, n: int) -> None:
    """A folder with images of a larger set would pass for one set with ours."""
    others = [path.name for path in folder.glob("[0-9]" * 6 + ".png") if int(path.stem) >= n]
    if others:
        raise UserError(f"{folder} holds {min(others)} and more of a larger set; empty it or choose another folder")


def _animate(model: DDPM, n: int, seed: int, path: Path, frames: int = 60) -> None:
    """x_T ... x_0 of the first n images as an animation that stays on its last frame."""
    noise = ImageNoise(seed, 0, n)
    x_T = noise(torch.empty(n, *model.image_shape, device=model.device))
    chain: list[Tensor] = [x_T, *model.sampler.trajectory(model.denoiser, x_T, noise)]
    kept = [*chain[:: max(1, len(chain) // frames)], chain[-1]]
    pictures = [Image.fromarray(grid(to_uint8(x).cpu()).permute(1, 2, 0).numpy()) for x in kept]
    durations = [60] * (len(pictures) - 1) + [3000]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
