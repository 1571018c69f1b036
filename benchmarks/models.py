"""Builds the models of the configs, diffusers' model with the same weights, and runs ``fit``."""

import sys
from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.report import device
from lightning_ddpm.commands.main import main
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.interop.diffusers.unet import make_unet_config
from lightning_ddpm.interop.diffusers.weights import export_weights
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet

CONFIGS = Path(__file__).parent.parent / "configs"
PRETRAINED = CONFIGS.parent / "checkpoints" / "pretrained" / "digits.ckpt"
SHAPES = {"cifar10": (32, 3, 16), "digits": (8, 1, 64)}
"""Image size, channels and default batch size by config."""


def read_config(config: str) -> dict[str, Any]:
    """Return the content of a config."""
    settings: dict[str, Any] = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    return settings


def run_fit(settings: dict[str, Any], folder: Path) -> Path:
    """Run the command ``fit`` with these settings and return the run's folder, inside ``folder``.

    Raises:
        SystemExit: fit failed and printed the reason.
    """
    run, file = folder / "run", folder / "config.yaml"
    settings["trainer"]["default_root_dir"] = str(run)
    file.write_text(yaml.safe_dump(settings))
    if status := main(["fit", "--config", str(file)]):
        sys.exit(status)
    return run


def get_network_arguments(config: str, size: int | None = None) -> dict[str, Any]:
    """Return the arguments of the config's U-Net for images of this size, with attention at half of it."""
    settings = read_config(config)["model"]["init_args"]["network"]
    own, channels, _ = SHAPES[config]
    arguments: dict[str, Any] = settings["init_args"]
    return arguments | {"channels": channels, "size": size or own, "attention": [(size or own) // 2]}


def build_model(config: str, size: int | None = None) -> DDPM:
    """Build the config's model, untrained, on the device that is measured."""
    return DDPM(UNet(**get_network_arguments(config, size)), Linear(1000), DDIM(50)).to(device())


def load_shipped_model() -> DDPM:
    """Load the shipped digits model onto the device that is measured."""
    return load(PRETRAINED, DDPM).to(device())


def build_diffusers_unet(module: DDPM) -> Any:
    """Build diffusers' UNet2DModel with the same weights on the same device."""
    from diffusers import UNet2DModel

    assert isinstance(module.network, UNet)
    model: Any = UNet2DModel.from_config(make_unet_config(module.network))
    model.load_state_dict(export_weights(module.network))
    return model.to(module.device)


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the autocast context of Lightning's precision plugin of that name."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16-mixed")


def describe_variant(options: Namespace) -> str:
    """Return what the options change, as a suffix of the result's name."""
    changed = [f"batch{options.batch_size}"] if options.batch_size else []
    changed += [options.precision] if options.precision != "32-true" else []
    changed += [name for name in ("compile", "channels_last") if getattr(options, name, False)]
    return "".join(f"_{each}" for each in changed)
