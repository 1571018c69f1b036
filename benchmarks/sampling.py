"""Drawing images: the sampler, the network's calls alone, and diffusers' pipeline with the same weights."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from torch import nn

from benchmarks.models import autocast, diffusers_unet, model_of, pretrained, variant
from benchmarks.report import in_turn, pause, write
from lightning_ddpm.diffusion import DDIM, Ancestral, FixedLarge, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.utils.compile import compile_in_place

LAP = 10
"""Evaluations that each makes before the next has its turn."""


def run(options: Namespace) -> None:
    """DDIM with 10 and 50 evaluations, ancestral sampling with all 1000: of the shipped digits model, or of the
    untrained CIFAR-10 model, which takes as long as a trained one.
    """
    model = pretrained() if options.config == "digits" else model_of(options.config)
    batch, T = options.batch_size or 64, model.schedule.T
    unet, betas = diffusers_unet(model), {"trained_betas": model.schedule.beta[1:].tolist()}
    whole, part = DDPMPipeline(unet, DDPMScheduler(T, **betas)), DDIMPipeline(unet, DDIMScheduler(T, **betas))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        compile_in_place(model.network)
    _pausing(model.network)
    _pausing(unet)
    for evaluations in (10, 50, 1000):
        if evaluations not in options.evaluations:
            continue
        pipeline: Any = whole if evaluations == T else part
        pipeline.set_progress_bar_config(disable=True)
        sampler: Sampler = Ancestral(FixedLarge()) if evaluations == T else DDIM(evaluations)
        contenders: dict[str, Callable[[], object]] = {
            "network alone": partial(_calls, model, batch, evaluations),
            "sampler": partial(model.generate, (0, 0, batch), sampler),
            "diffusers": partial(pipeline, batch_size=batch, num_inference_steps=evaluations, output_type="np"),
        }
        with evaluation_mode(model), autocast(options.precision):
            seconds = in_turn(contenders, options.rounds)
        per = {name: [each / evaluations for each in found] for name, found in seconds.items()}
        settings = {"evaluations": evaluations, "batch": batch, "per": "evaluation", "rounds": options.rounds}
        settings["images"] = batch / evaluations
        write(options.out, f"sampling_{options.config}_{evaluations}{variant(options)}", settings, per)


def _pausing(network: nn.Module) -> None:
    """Have a network let the others take their turn after so many calls, outside of what is compiled of it."""
    called, calls = network._compiled_call_impl or network._call_impl, count(1)

    def call(*inputs: Any, **options: Any) -> Any:
        output = called(*inputs, **options)
        if next(calls) % LAP == 0:
            pause()
        return output

    network._compiled_call_impl = call  # type: ignore[assignment]


def _calls(model: DDPM, batch: int, evaluations: int) -> None:
    """As many calls of the network, with nothing between."""
    x = torch.randn(batch, *model.image_shape, device=model.device)
    t = torch.full((batch,), 500, device=model.device)
    for _ in range(evaluations):
        model.network(x, t)
