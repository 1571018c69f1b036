"""Training loops that fit is compared with, each on the same batches: by hand, diffusers', lucidrains'."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import autocast, build_diffusers_unet
from lightning_ddpm.models.ddpm import DDPM

FLOOR, DIFFUSERS, PYTORCH = "bare loop", "diffusers", "denoising-diffusion-pytorch"
Block = Callable[[int], None]
"""Takes a number of training steps."""


def make_block(
    name: str,
    module: DDPM,
    batches: Iterator[tuple[Tensor, Tensor]],
    images: Path,
    batch_size: int,
    precision: str = "32-true",
) -> Block:
    """Return a function that takes this contender's training steps, of an uncompiled network like the module's."""
    if name == FLOOR:
        network = copy.deepcopy(module.network).to(memory_format=torch.contiguous_format)  # the copy is not compiled
        return make_bare_loop(network, module, batches, precision)
    if name == DIFFUSERS:
        return make_diffusers_loop(module, batches, precision)
    return make_denoising_diffusion_pytorch_loop(module, images, batch_size, precision)


def make_bare_loop(
    network: nn.Module,
    module: DDPM,
    batches: Iterator[tuple[Tensor, Tensor]],
    precision: str = "32-true",
    optimizer: OptimizerCallable | None = None,
) -> Block:
    """Return the minimal loop: Ho et al.'s Algorithm 1 with an optimizer, clipping and EMA, written by hand."""
    alpha_bar = module.schedule.alpha_bar.to(module.device, torch.float32)
    parameters = list(network.parameters())
    average = [each.detach().clone() for each in parameters]
    adam, T = (optimizer or module.optimizer)(parameters), module.schedule.T

    def block(steps: int) -> None:
        for _ in range(steps):
            x_0, _ = next(batches)
            t = torch.randint(1, T + 1, (len(x_0),), device=x_0.device)
            eps, signal = torch.randn_like(x_0), alpha_bar[t][:, None, None, None]
            with autocast(precision):
                output = network(signal.sqrt() * x_0 + (1 - signal).sqrt() * eps, t)
            loss = functional.mse_loss(output.float(), eps)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()
            adam.zero_grad()
            torch._foreach_lerp_(average, [each.detach() for each in parameters], 1e-4)

    return block


def make_diffusers_loop(module: DDPM, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> Block:
    """Return the loop of diffusers' examples/unconditional_image_generation, without accelerate and, as there, EMA."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler

    model = build_diffusers_unet(module).train()
    scheduler = DDPMScheduler(num_train_timesteps=module.schedule.T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)

    def block(steps: int) -> None:
        for _ in range(steps):
            clean, _ = next(batches)
            noise = torch.randn(clean.shape, dtype=torch.float32, device=clean.device)
            timesteps = torch.randint(
                0, scheduler.config.num_train_timesteps, (len(clean),), device=clean.device
            ).long()
            with autocast(precision):
                output = model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
            functional.mse_loss(output.float(), noise.float()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()

    return block


def make_denoising_diffusion_pytorch_loop(module: DDPM, images: Path, batch_size: int, precision: str) -> Block:
    """Return the steps of its own Trainer with its U-Net of the same width and depth, which is another network."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from denoising_diffusion_pytorch import Trainer as TheirTrainer

    network: Any = module.network
    multipliers = tuple(int(each) for each in module.hparams["network"]["init_args"]["multipliers"])
    width = int(module.hparams["network"]["init_args"]["width"])
    model = Unet(dim=width, dim_mults=multipliers, channels=network.channels, flash_attn=False)
    diffusion = GaussianDiffusion(model, image_size=network.size, timesteps=module.schedule.T, objective="pred_noise")
    trainer = TheirTrainer(
        diffusion,
        str(images),
        train_batch_size=batch_size,
        save_and_sample_every=10**9,
        calculate_fid=False,
        results_folder=str(images.parent / "results"),
        train_num_steps=0,
        amp=precision == "bf16-mixed",
        mixed_precision_type="bf16",
    )

    def block(steps: int) -> None:
        trainer.train_num_steps += steps
        trainer.train()

    return block
