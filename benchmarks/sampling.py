"""Drawing images: the sampler, the network's calls alone, and diffusers' pipeline with the same weights."""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDPMPipeline

from benchmarks.report import device, in_turn, write
from lightning_ddpm.checkpoint import load
from lightning_ddpm.cli import main
from lightning_ddpm.diffusion import DDIM, Ancestral, FixedLarge, Sampler
from lightning_ddpm.generation import evaluating
from lightning_ddpm.module import DDPM

CKPT = Path(__file__).parent.parent / "checkpoints" / "pretrained" / "digits.ckpt"


def run(options: Namespace) -> None:
    """DDIM with 10 and 50 evaluations, ancestral sampling with all 1000, of the shipped digits model."""
    model = load(CKPT, DDPM).to(device())
    batch = options.batch_size or 64
    with tempfile.TemporaryDirectory() as folder:
        if main(["export", "--format", "diffusers", "--ckpt", str(CKPT), "--out", folder]):
            raise SystemExit("the shipped checkpoint could not be exported")
        pipelines = {True: DDPMPipeline.from_pretrained(folder), False: DDIMPipeline.from_pretrained(folder)}
    for evaluations in (10, 50, 1000):
        whole = evaluations == model.schedule.T
        pipeline = pipelines[whole].to(device())
        pipeline.set_progress_bar_config(disable=True)
        sampler: Sampler = Ancestral(FixedLarge()) if whole else DDIM(evaluations)
        contenders: dict[str, Callable[[], object]] = {
            "network alone": partial(_calls, model, batch, evaluations),
            "sampler": partial(model.generate, (0, 0, batch), sampler),
            "diffusers": partial(pipeline, batch_size=batch, num_inference_steps=evaluations, output_type="np"),
        }
        with evaluating(model):
            seconds = in_turn(contenders, options.rounds if evaluations < 1000 else 3)
        per = {name: [each / evaluations for each in found] for name, found in seconds.items()}
        settings = {"evaluations": evaluations, "batch": batch, "per": "evaluation", "rounds": len(per["sampler"])}
        settings["images"] = batch / evaluations
        write(options.out, f"sampling_{evaluations}", settings, per)


def _calls(model: DDPM, batch: int, evaluations: int) -> None:
    """As many calls of the network, with nothing between."""
    x = torch.randn(batch, *model.image_shape, device=model.device)
    t = torch.full((batch,), 500, device=model.device)
    for _ in range(evaluations):
        model.network(x, t)
