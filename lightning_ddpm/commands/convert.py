"""``export`` and ``import``: convert checkpoints to and from formats of other programs, such as diffusers."""

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import Namespace
from safetensors.torch import save

from lightning_ddpm.commands import import_sources
from lightning_ddpm.commands.import_sources import WEIGHTS
from lightning_ddpm.commands.parsing import parse
from lightning_ddpm.commands.pipeline_configs import make_pipeline_configs
from lightning_ddpm.commands.release import write_release
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.interop.diffusers import continuous, scheduler
from lightning_ddpm.interop.diffusers.settings import SAMPLER_KEY
from lightning_ddpm.interop.diffusers.weights import export_weights
from lightning_ddpm.models.checkpoint import (
    build_checkpoint,
    build_hyper_parameters,
    build_module,
    load,
    read_checkpoint,
)
from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_output_file, fill_folder, write_atomically, write_json
from lightning_ddpm.utils.paths import resolve_path
from lightning_ddpm.utils.yaml_text import build_parser, dump_yaml


def run_export(arguments: Sequence[str]) -> None:
    """Parse the options and write a checkpoint in another format."""
    description = "Write a checkpoint in another format."
    parser = build_parser("export", description)
    add = parser.add_argument
    add("--ckpt", type=locate_checkpoint, required=True, help="the checkpoint; its averaged weights are exported")
    add("--out", type=resolve_path, required=True, help="folder to write; must be new or empty")
    add(
        "--format",
        choices=["diffusers", "release"],
        required=True,
        help="a pipeline of diffusers, or a folder to publish",
    )
    add("--variance", choices=sorted(scheduler.VARIANCES), help="diffusers: of the reverse steps; default: its own")
    add("--license", type=str, metavar="ID", help="release: licence of the weights, such as apache-2.0, for the card")
    add("--metrics", type=resolve_path, nargs="+", metavar="FILE.json", help="release: results of `evaluate --out`")
    add("--samples", type=int, metavar="N", help="release: images to generate for the card; default: 16, 0 for none")
    options = parse(parser, arguments, "export")
    others = ("license", "metrics", "samples") if options.format == "diffusers" else ("variance",)
    if given := [name for name in others if options[name] is not None]:
        raise UserError(f"--{given[0]} is no option of --format {options.format}; leave it out")
    write = _write_pipeline if options.format == "diffusers" else write_release
    write(options)


def _write_pipeline(options: Namespace) -> None:
    """Write a checkpoint as a pipeline of diffusers."""
    model = load(options.ckpt, DDPM)
    variance = scheduler.VARIANCES[options.variance]() if options.variance else None
    configs = make_pipeline_configs(model, variance)
    assert isinstance(model.network, UNet)
    if not options.variance:
        sampler = read_checkpoint(options.ckpt)["hyper_parameters"].get("sampler")
        configs.scheduler[SAMPLER_KEY] = sampler

    weights = save(export_weights(model.network, configs.time_offset), metadata={"format": "pt"})
    with fill_folder(options.out):
        write_atomically(options.out / "unet" / f"{WEIGHTS}.safetensors", lambda file: file.write(weights))
        write_json(options.out / "unet" / "config.json", configs.unet)
        write_json(options.out / "scheduler" / "scheduler_config.json", configs.scheduler)
        write_json(options.out / "model_index.json", configs.pipeline)
    kind, pipeline = configs.scheduler["_class_name"], configs.pipeline["_class_name"]
    is_chain = kind not in continuous.PIPELINES
    reads = f"variance {configs.scheduler['variance_type']}" if is_chain else kind
    report(f"wrote {options.out}: a {pipeline} of diffusers, EMA weights, {reads}")
    if model.class_names:
        _report_classes(len(model.class_names), pipeline)
    if not is_chain:
        steps = continuous.describe_sampling(kind, model.schedule, model.sampler)
        report(f"`import` reads the steps of its sampler, {model.sampler}, too; in diffusers {steps}")
    elif options.variance is None:
        _report_skipped(model)
    if continuous.CLIPPING_KEY in configs.scheduler:
        report(
            f"{kind} does not clip predicted images to the range, as sampling does here: images differ where "
            "predictions leave it, unless a loop of your own clips them, too"
        )


def _report_classes(n: int, pipeline: str) -> None:
    """Print how a pipeline of diffusers is given a class."""
    labels = f"class_labels=0..{n - 1}, or {n} for no class"
    if pipeline != "DDPMPipeline":
        report(f"its {n} classes are the argument class_labels of the pipeline's call, a list of numbers: {labels}")
        return
    report(
        f"its {n} classes need a loop of your own: DDPMPipeline passes none. Load "
        f'UNet2DModel.from_pretrained(folder, subfolder="unet") and call it with {labels}'
    )


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
    add("--folder", type=resolve_path, help="a saved or downloaded pipeline of diffusers, of a UNet2DModel")
    add("--weights", type=resolve_path, metavar="FILE.pt", help="weights of guided-diffusion or EDM; give --config")
    add("--config", type=str, help="config of the model that --weights are of, such as adm_64")
    add("--legacy_attention", action="store_true", help="guided-diffusion without --use_new_attention_order True")
    add("--out", type=resolve_path, required=True, metavar="FILE.ckpt", help="to write, and FILE.yaml beside it")
    options = parse(parser, arguments, "import")
    config_file = options.out.with_suffix(".yaml")
    check_output_file(options.out, "--out", [".ckpt"])
    if options.out.exists():
        raise UserError(f"{options.out} exists already; choose another name or delete it")
    source = _choose_source(options)
    text = dump_yaml({"model": source.config})
    if config_file.exists() and config_file.read_bytes() != text.encode():  # else of an import that was interrupted
        raise UserError(f"{config_file} exists already; choose another name or delete it")
    parameters, weights = build_hyper_parameters(source.config), source.read_weights()
    model = build_module(parameters, DDPM, source.path, weights)
    assert isinstance(model.network, UNet)
    source.load_weights(model.network, weights)

    checkpoint = build_checkpoint(model.state_dict(), parameters)
    write_atomically(config_file, lambda file: file.write(text.encode()))
    write_atomically(options.out, lambda file: torch.save(checkpoint, file))
    report(f"wrote {options.out}; `sample --ckpt {options.out}` generates images from it")
    report(f"wrote {config_file}; `fit --config CONFIG --config {config_file} --ckpt_path {options.out}` fine-tunes it")


def _choose_source(options: Any) -> import_sources.Source:
    """Return what is imported.

    Raises:
        UserError: options of both sources are given, or of neither.
    """
    diffusers, guided = options.folder is not None, options.weights is not None
    if diffusers == guided or guided != (options.config is not None) or (diffusers and options.legacy_attention):
        raise UserError(
            "give either --folder, of a pipeline of diffusers, or --weights, of guided-diffusion or EDM, with --config"
        )
    if diffusers:
        return import_sources.read_diffusers(options.folder)
    return import_sources.read_weights(options.weights, options.config, options.legacy_attention)
