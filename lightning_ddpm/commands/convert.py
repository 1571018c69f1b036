"""``export`` and ``import``: convert checkpoints to and from pipeline folders of Hugging Face's diffusers."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.interop.diffusers import scheduler, unet
from lightning_ddpm.interop.diffusers.settings import MODEL_INDEX, Config
from lightning_ddpm.models.checkpoint import (
    MAX_LENGTH,
    build_hyper_parameters,
    build_module,
    load,
    read_checkpoint,
)
from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_output_file, check_writable, write_atomically, write_json
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.text_files import read_json
from lightning_ddpm.utils.torch_files import read_torch_file
from lightning_ddpm.utils.yaml_text import build_parser, dump_yaml

UNFINISHED = ".unfinished-export"
"""File in a folder that export has begun to write, and may therefore write again."""
WEIGHTS = "diffusion_pytorch_model"
"""File name of a model's weights in diffusers, without .safetensors or .bin."""


def run_export(arguments: Sequence[str]) -> None:
    """Parse the options and write a checkpoint as a diffusers pipeline."""
    description = "Write a checkpoint in another format."
    parser = build_parser("export", description)
    add = parser.add_argument
    add("--ckpt", type=locate_checkpoint, required=True, help="the checkpoint; its averaged weights are exported")
    add("--out", type=resolve_path, required=True, help="folder to write; must be new or empty")
    add("--format", choices=["diffusers"], required=True, help="format, for diffusers.DDPMPipeline.from_pretrained")
    add("--variance", choices=sorted(scheduler.VARIANCES), help="of the reverse steps; default: the checkpoint's own")
    options = parse(parser, arguments, "export")
    model = load(options.ckpt, DDPM)
    unet_config = unet.make_unet_config(model.network)
    assert isinstance(model.network, UNet)
    outputs = unet_config["out_channels"] // unet_config["in_channels"]
    variance = scheduler.VARIANCES[options.variance]() if options.variance else None
    variance = variance or scheduler.choose_variance(model.sampler, outputs)
    scheduler_config = scheduler.make_scheduler_config(model.schedule, model.parameterization, variance)
    if len(scheduler_config["trained_betas"] or ()) > MAX_LENGTH:
        raise UserError(
            f"diffusers has no {type(model.schedule).__name__}, and {model.schedule.T:,} betas are more than a list "
            f"may have here ({MAX_LENGTH:,}); only Linear, Quadratic and Cosine schedules can have more steps"
        )
    if not options.variance:
        sampler = read_checkpoint(options.ckpt)["hyper_parameters"].get("sampler")
        scheduler_config |= {scheduler.SAMPLER_KEY: sampler}
    variance_type = scheduler_config["variance_type"]
    scheduler.check_outputs(variance_type, outputs)

    weights = save(unet.export_weights(model.network), metadata={"format": "pt"})
    check_writable(options.out)
    unfinished = options.out / UNFINISHED
    if any(options.out.iterdir()) and not unfinished.is_file():
        raise UserError(f"{options.out} is not empty; choose another folder")
    unfinished.touch()
    write_atomically(options.out / "unet" / f"{WEIGHTS}.safetensors", lambda file: file.write(weights))
    write_json(options.out / "unet" / "config.json", unet_config)
    write_json(options.out / "scheduler" / "scheduler_config.json", scheduler_config)
    write_json(options.out / "model_index.json", MODEL_INDEX)
    unfinished.unlink()
    report(f"wrote {options.out}: a DDPMPipeline of diffusers, EMA weights, variance {variance_type}")
    if options.variance is None:
        _report_skipped(model)


def _report_skipped(model: DDPM) -> None:
    """Print the sampler settings that diffusers takes as arguments of a pipeline call, not from its folder."""
    sampler, T = model.sampler, model.schedule.T
    steps = sampler.nfe(T)
    call = f"num_inference_steps={steps}"
    if isinstance(sampler, DDIM):
        call = f"DDIMPipeline: eta={sampler.eta}, use_clipped_model_output=True, {call}"
    elif steps == T:
        return
    spacing = "" if steps == T else "; diffusers has its own choice of these steps among the T"
    report(f"`import` reads its sampler, {sampler}, too; in diffusers it is arguments of a call: {call}{spacing}")


def run_import(arguments: Sequence[str]) -> None:
    """Parse the options and write a checkpoint from a diffusers pipeline."""
    description = "Convert another library's model to a checkpoint."
    parser = build_parser("import", description)
    add = parser.add_argument
    add(
        "--folder",
        type=resolve_path,
        required=True,
        help="a saved or downloaded DDPMPipeline or DDIMPipeline of diffusers",
    )
    add(
        "--out",
        type=resolve_path,
        required=True,
        metavar="FILE.ckpt",
        help="checkpoint to write, and FILE.yaml beside it",
    )
    options = parse(parser, arguments, "import")
    config_file = options.out.with_suffix(".yaml")
    check_output_file(options.out, "--out", [".ckpt"])
    if options.out.exists():
        raise UserError(f"{options.out} exists already; choose another name or delete it")
    config = _read_config(options.folder)
    text = dump_yaml({"model": config})
    if config_file.exists() and config_file.read_bytes() != text.encode():  # else of an import that was interrupted
        raise UserError(f"{config_file} exists already; choose another name or delete it")
    parameters = build_hyper_parameters(config)
    weights = _read_weights(_part(options.folder, "unet"))
    model = build_module(parameters, DDPM, options.folder, weights)
    assert isinstance(model.network, UNet)
    unet.load_weights(model.network, weights)

    state = model.state_dict()
    checkpoint = {
        "state_dict": state,
        # Both sets of weights and no other state: training starts at step 0 with the optimizer of its config.
        "current_model_state": state,
        "averaging_state": {"n_averaged": torch.tensor(0)},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "hyper_parameters": parameters,
    }
    write_atomically(config_file, lambda file: file.write(text.encode()))
    write_atomically(options.out, lambda file: torch.save(checkpoint, file))
    report(f"wrote {options.out}; `sample --ckpt {options.out}` generates images from it")
    report(f"wrote {config_file}; `fit --config CONFIG --config {config_file} --ckpt_path {options.out}` fine-tunes it")


def _part(folder: Path, name: str) -> Path:
    """Return a pipeline's folder of its ``unet`` or ``scheduler``: that of this name, or else the pipeline's own."""
    return folder / name if (folder / name).is_dir() else folder


def _read_config(folder: Path) -> dict[str, Any]:
    """Return class_path and init_args of the model in a diffusers folder."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    index = folder / "model_index.json"
    Config(_read_json(index), str(index)).check_class(["DDPMPipeline", "DDIMPipeline"])
    arguments = unet.parse_unet_config(_read_json(_part(folder, "unet") / "config.json"))
    chain = _read_json(_part(folder, "scheduler") / "scheduler_config.json")
    network = {"class_path": "lightning_ddpm.networks.UNet", "init_args": arguments}
    parts = scheduler.parse_scheduler_config(chain, outputs=arguments["outputs"])
    return {"class_path": "lightning_ddpm.models.ddpm.DDPM", "init_args": {"network": network, **parts}}


def _read_weights(folder: Path) -> Mapping[str, Tensor]:
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
