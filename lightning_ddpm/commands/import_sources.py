"""What ``import`` reads: pipelines of diffusers, and weights of guided-diffusion and EDM."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors.torch import load_file
from torch import Tensor

from lightning_ddpm.commands.list_options import as_list
from lightning_ddpm.interop import edm, guided_diffusion
from lightning_ddpm.interop.diffusers import continuous, scheduler, unet
from lightning_ddpm.interop.diffusers.settings import Config
from lightning_ddpm.interop.diffusers.weights import load_weights
from lightning_ddpm.networks import EarlyAugmentationEmbedding, UNet
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.shipped import CONFIGS
from lightning_ddpm.utils.text_files import read_json
from lightning_ddpm.utils.torch_files import read_torch_file
from lightning_ddpm.utils.yaml_text import load_yaml

WEIGHTS = "diffusion_pytorch_model"
"""File name of a model's weights in diffusers, without .safetensors or .bin."""
DDPM_PATH, UNET_PATH = "lightning_ddpm.models.ddpm.DDPM", "lightning_ddpm.networks.UNet"
IMPORTED = ("network", "schedule", "sampler", "parameterization", "clipping")
"""What a checkpoint takes from the config of such a model: the rest is of training."""


class Source(NamedTuple):
    """A model of another program.

    Attributes:
        config: class_path and init_args of the model.
        path: where it is, for messages.
        read_weights: reads the weights, under their own names.
        load_weights: loads them into the network.
    """

    config: dict[str, Any]
    path: Path
    read_weights: Callable[[], Mapping[str, Tensor]]
    load_weights: Callable[[UNet, Mapping[str, Tensor]], None]


def read_diffusers(folder: Path) -> Source:
    """Read the configuration of a pipeline's folder.

    Raises:
        UserError: a file is missing, or a setting is not supported.
    """
    return Source(_read_config(folder), folder, partial(_read_diffusers_weights, _part(folder, "unet")), load_weights)


def read_weights(path: Path, config: str, legacy_attention: bool) -> Source:
    """Read the configuration of a model whose weights are in a file of guided-diffusion or EDM.

    Args:
        path: the file.
        config: a training config of the model, or the name of one that ships.
        legacy_attention: see :func:`lightning_ddpm.interop.guided_diffusion.load_weights`.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}")
    weights = _check_weights(read_torch_file(path, "a file of weights"), path)
    file = CONFIGS.find(config) or resolve_path(config)
    if not file.is_file():
        raise UserError(f"there is no config {file}{CONFIGS.suggest(config)}")
    try:
        content = load_yaml(file.read_text(encoding="utf-8"), str(file))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no config: {first_line(error)}") from error
    paths = (_get(content, "model", "class_path"), _get(content, "model", "init_args", "network", "class_path"))
    if paths != (DDPM_PATH, UNET_PATH):
        raise UserError(f"{file} is not a training config of {DDPM_PATH} with {UNET_PATH}")
    arguments = content["model"]["init_args"]
    size = _get(content, "data", "source", "init_args", "size")
    network = {"size": size} | (_get(arguments, "network", "init_args") or {})
    is_edm = edm.is_edm(weights)
    if is_edm and legacy_attention:
        raise UserError("--legacy_attention is for weights of guided-diffusion, and these are EDM's; leave it out")
    inferred = edm.infer_arguments(weights) if is_edm else guided_diffusion.infer_arguments(weights)
    network = {**network, "size": network.get("size") or size, **inferred}
    keeps = is_edm and edm.has_augmentation(weights) and _has_early_augmentation(network)
    if not keeps:
        network.pop("conditions", None)  # augmentation's, which is of training
    arguments["network"]["init_args"] = network
    names = (*IMPORTED, "augmentations") if keeps else IMPORTED
    parts = {name: arguments[name] for name in names if name in arguments}
    theirs = partial(guided_diffusion.load_weights, legacy_attention=legacy_attention)
    load = edm.load_weights if is_edm else theirs
    return Source({"class_path": DDPM_PATH, "init_args": parts}, path, lambda: weights, load)


def _has_early_augmentation(network: Mapping[str, Any]) -> bool:
    """Return whether augmentation is a network's only condition, and embedded where EDM's networks embed it."""
    given = as_list(network.get("conditions"))
    kinds = [str(_get(each, "class_path")).rpartition(".")[2] for each in given]
    return kinds == [EarlyAugmentationEmbedding.__name__]


def _part(folder: Path, name: str) -> Path:
    """Return a pipeline's folder of its ``unet`` or ``scheduler``: that of this name, or else the pipeline's own."""
    return folder / name if (folder / name).is_dir() else folder


def _read_config(folder: Path) -> dict[str, Any]:
    """Return class_path and init_args of the model in a diffusers folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    index = folder / "model_index.json"
    Config(_read_json(index), str(index)).check_class(["DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline"])
    network = _read_json(_part(folder, "unet") / "config.json")
    path = _read_json(_part(folder, "scheduler") / "scheduler_config.json")
    is_chain = str(path.get("_class_name")) not in continuous.PIPELINES
    arguments = unet.parse_unet_config(network, time_offset=int(is_chain))
    parts = scheduler.parse_scheduler_config(path, outputs=arguments["outputs"])
    described = {"class_path": UNET_PATH, "init_args": arguments}
    return {"class_path": DDPM_PATH, "init_args": {"network": described, **parts}}


def _read_diffusers_weights(folder: Path) -> Mapping[str, Tensor]:
    """Read weights under diffusers' names, from safetensors if there are any, else from a pickle of tensors only."""
    safe, pickled = folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"
    path = safe if safe.is_file() else pickled
    if not path.is_file():
        raise UserError(f"there is neither {safe.name} nor {pickled.name} in {folder}")
    try:
        weights = load_file(path) if path == safe else read_torch_file(path, "a file of weights")
    except UserError:
        raise
    except Exception as error:  # the library raises several kinds
        raise UserError(f"{path} is damaged, or holds more than weights: {first_line(error)}") from error
    return _check_weights(weights, path)


def _check_weights(weights: object, path: Path) -> Mapping[str, Tensor]:
    """Return the content of a file, if it is named weights and all are finite."""
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise UserError(f"{path} is not a file of weights")
    for name, weight in weights.items():
        if not weight.is_floating_point() or not weight.float().isfinite().all():
            kind = "NaN or infinity" if weight.is_floating_point() else str(weight.dtype).removeprefix("torch.")
            raise UserError(f"{path} holds {kind} in {name}, and weights must be finite floating-point numbers")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}; a diffusers pipeline has one")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a configuration of diffusers")
    return content


def _get(content: object, *keys: str) -> Any:
    """Return what stands under these keys of nested mappings; ``None`` where one is missing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
