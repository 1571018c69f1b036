"""The configs, their models, diffusers' with the same weights, and how they are run."""

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
from lightning_ddpm.interop.diffusers import export_weights, make_unet_config
from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet

CONFIGS = Path(__file__).parent.parent / "configs"
PRETRAINED = CONFIGS.parent / "checkpoints" / "pretrained" / "digits.ckpt"
SHAPES = {"cifar10": (32, 3, 16), "digits": (8, 1, 64)}
"""Of each config: the images' size and channels, and the batch that is taken here."""


def read(config: str) -> dict[str, Any]:
    """What the config of that name says."""
    settings: dict[str, Any] = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    return settings


def fit(settings: dict[str, Any], folder: Path) -> Path:
    """The whole program's fit of such settings; the folder of the run, in that one.

    Raises:
        SystemExit: it has failed, and has said why.
    """
    run, file = folder / "run", folder / "config.yaml"
    settings["trainer"]["default_root_dir"] = str(run)
    file.write_text(yaml.safe_dump(settings))
    if status := main(["fit", "--config", str(file)]):
        sys.exit(status)
    return run


def network_arguments(config: str, size: int | None = None) -> dict[str, Any]:
    """The config's U-Net for images of its size or another, with attention at half of it, as there."""
    settings = read(config)["model"]["init_args"]["network"]
    own, channels, _ = SHAPES[config]
    arguments: dict[str, Any] = settings["init_args"]
    return arguments | {"channels": channels, "size": size or own, "attention": [(size or own) // 2]}


def model_of(config: str, size: int | None = None) -> DDPM:
    """The config's model, untrained, where things are measured."""
    return DDPM(UNet(**network_arguments(config, size)), Linear(1000), DDIM(50)).to(device())


def pretrained() -> DDPM:
    """The shipped digits model, where things are measured."""
    return load(PRETRAINED, DDPM).to(device())


def diffusers_unet(module: DDPM) -> Any:
    """UNet2DModel with the same weights on the same device."""
    from diffusers import UNet2DModel

    assert isinstance(module.network, UNet)
    model: Any = UNet2DModel.from_config(make_unet_config(module.network))
    model.load_state_dict(export_weights(module.network))
    return model.to(module.device)


def autocast(precision: str) -> AbstractContextManager[Any]:
    """What Lightning's precision of that name has the network run in."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16-mixed")


def variant(options: Namespace) -> str:
    """What the options change, for the name of the result; nothing for nothing."""
    changed = [f"batch{options.batch_size}"] if options.batch_size else []
    changed += [options.precision] if options.precision != "32-true" else []
    changed += [name for name in ("compile", "channels_last") if getattr(options, name)]
    return "".join(f"_{each}" for each in changed)
