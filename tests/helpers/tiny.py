"""Tiny models and quiet trainers for tests, and access to optional real data."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from lightning_ddpm.diffusion import DDIM, Cosine
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet

TINY: dict[str, Any] = {
    "channels": 1,
    "size": 8,
    "width": 8,
    "multipliers": (1, 2),
    "attention": (4,),
    "blocks": 1,
    "groups": 4,
}
"""The arguments of a U-Net for 8x8 digits."""


def tiny_network(**more: Any) -> UNet:
    """Return a U-Net for 8x8 digits, always with the same weights, none of them near zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(**TINY, **more)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return network


def tiny_model(**arguments: Any) -> DDPM:
    """Return a DDPM of the tiny network, with 20 steps and a learning rate at which every step has an effect."""
    defaults: dict[str, Any] = {
        "network": tiny_network(),
        "schedule": Cosine(steps=20),
        "sampler": DDIM(steps=2),
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }
    return DDPM(**(defaults | arguments))


def quiet_trainer(folder: Path, **arguments: Any) -> Trainer:
    """Return a Trainer on the CPU that by default neither validates nor saves anything."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | arguments))


def real_data(name: str) -> Path:
    """Return a file or folder of real data under $LIGHTNING_DDPM_TEST_DATA; skip the test if it is missing."""
    root = os.environ.get("LIGHTNING_DDPM_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_DDPM_TEST_DATA is not set, so that there is no real data")
    if not (Path(root) / name).exists():
        pytest.skip(f"there is no {name} in $LIGHTNING_DDPM_TEST_DATA")
    return Path(root) / name


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the parameters."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
