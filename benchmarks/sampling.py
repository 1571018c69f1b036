"""Times sampling: the sampler, the network's calls alone, and diffusers' pipeline with the same weights."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from torch import nn

from benchmarks.models import autocast, build_diffusers_unet, build_model, describe_variant, load_shipped_model
from benchmarks.report import pause, time_in_turns, write_result
from lightning_ddpm.diffusion import DDIM, Ancestral, FixedLarge, Sampler
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.compile import compile_in_place

LAP = 10
"""Network evaluations of one contender before the next one has its turn."""


def run(options: Namespace) -> None:
    """Time DDIM with 10 and 50 steps and ancestral sampling with all 1000.

    The model is the shipped digits model, or an untrained CIFAR-10 model, which takes as long as a trained one.
    """
    model = load_shipped_model() if options.config == "digits" else build_model(options.config)
    batch, T = options.batch_size or 64, model.schedule.T
    unet, betas = build_diffusers_unet(model), {"trained_betas": model.schedule.beta[1:].tolist()}
    whole, part = DDPMPipeline(unet, DDPMScheduler(T, **betas)), DDIMPipeline(unet, DDIMScheduler(T, **betas))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        compile_in_place(model.network)
    _add_pauses(model.network)
    _add_pauses(unet)
    for nfe in sorted(set(options.nfe)):
        pipeline: Any = whole if nfe == T else part
        pipeline.set_progress_bar_config(disable=True)
        sampler: Sampler = Ancestral(FixedLarge()) if nfe == T else DDIM(nfe)
        contenders: dict[str, Callable[[], object]] = {
            "network alone": partial(_call_network, model, batch, nfe),
            "sampler": partial(model.generate, SampleRequest(batch, sampler=sampler), 0, batch),
            "diffusers": partial(pipeline, batch_size=batch, num_inference_steps=nfe, output_type="np"),
        }
        with evaluation_mode(model), autocast(options.precision):
            seconds = time_in_turns(contenders, options.rounds)
        per = {name: [each / nfe for each in found] for name, found in seconds.items()}
        settings = {"NFE": nfe, "batch": batch, "per": "NFE", "rounds": options.rounds}
        settings["images"] = batch / nfe
        write_result(options.out, f"sampling_{options.config}_{nfe}{describe_variant(options)}", settings, per)


def _add_pauses(network: nn.Module) -> None:
    """Let a network pause after every ``LAP`` calls, outside of its compiled part."""
    called, calls = network._compiled_call_impl or network._call_impl, count(1)

    def call(*inputs: Any, **options: Any) -> Any:
        output = called(*inputs, **options)
        if next(calls) % LAP == 0:
            pause()
        return output

    network._compiled_call_impl = call  # type: ignore[assignment]


def _call_network(model: DDPM, batch: int, nfe: int) -> None:
    """Call the network as often as the sampler does, with nothing in between."""
    x = torch.randn(batch, *model.image_shape, device=model.device)
    t = torch.full((batch,), 500, device=model.device)
    for _ in range(nfe):
        model.network(x, t)
