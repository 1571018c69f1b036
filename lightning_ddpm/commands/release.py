"""``export --format release``: a folder with a model's averaged weights, its config and its model card, to publish."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning_fabric import Fabric
from safetensors.torch import save

from lightning_ddpm.commands.condition_files import list_condition_options
from lightning_ddpm.commands.model_card import ModelFacts, write_card
from lightning_ddpm.commands.pipeline_configs import make_pipeline_configs
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.data.previews import choose_preview
from lightning_ddpm.interop import hub
from lightning_ddpm.models.checkpoint import build_checkpoint, load, read_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate
from lightning_ddpm.models.trusted_imports import list_foreign_modules
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import fill_folder, read_utf8, write_atomically
from lightning_ddpm.utils.hashing import hash_file
from lightning_ddpm.utils.text_files import read_json
from lightning_ddpm.utils.torch_files import save_with_digest
from lightning_ddpm.utils.yaml_text import load_yaml


def write_release(options: Namespace) -> None:
    """Write a release.

    Args:
        options: those of ``export``.

    Raises:
        UserError: a result of ``--metrics`` is no result of this checkpoint, or the folder is not empty.
    """
    n = 16 if options.samples is None else options.samples
    if n < 0:
        raise UserError(f"--samples must be at least 0, got {n}")
    if options.license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}", options.license):
        raise UserError(f"--license is an identifier, such as apache-2.0 or cc-by-4.0, got {options.license}")
    checkpoint, model = read_checkpoint(options.ckpt), load(options.ckpt, DDPM)
    digest = hash_file(options.ckpt)
    results = [_read_result(Path(path), digest) for path in options.metrics or ()]
    parameters = checkpoint["hyper_parameters"]
    with fill_folder(options.out):
        _write_weights(options.out, model, parameters)
        facts = ModelFacts(
            options.out.name,
            options.license,
            _describe_parts(model),
            _copy_config(options.ckpt.parent / hub.CONFIG, options.out),
            list_foreign_modules(parameters),
            _has_diffusers_form(model),
            _write_samples(model, n, options.out / hub.SAMPLES) if n else None,
            model.class_names,
            digest,
            checkpoint.get("global_step", 0),
            list_condition_options(model.condition_format),
        )
        write_atomically(options.out / hub.CARD, lambda file: file.write(write_card(facts, results).encode()))
    report(f"wrote {options.out}: {hub.WEIGHTS} and {hub.CHECKPOINT} with EMA weights, and {hub.CARD}, the model card")
    if options.license is None:
        report(f"{hub.CARD} states no licence; --license ID states one, such as apache-2.0 or cc-by-4.0")
    if not results:
        report(f"{hub.CARD} states no metrics; --metrics FILE.json states those that `evaluate --out` wrote")


def _write_weights(folder: Path, model: DDPM, parameters: dict[str, Any]) -> None:
    """Write a model's weights twice, as safetensors and as a checkpoint, with their digests."""
    state = model.state_dict()
    write_atomically(folder / hub.CHECKPOINT, partial(save_with_digest, build_checkpoint(state, parameters)))
    weights = save({name: each.clone().contiguous() for name, each in state.items()}, metadata={"format": "pt"})
    write_atomically(folder / hub.WEIGHTS, lambda file: file.write(weights))
    sums = "".join(f"{hash_file(folder / name)}  {name}\n" for name in (hub.CHECKPOINT, hub.WEIGHTS))
    write_atomically(folder / hub.DIGESTS, lambda file: file.write(sums.encode()))


def _copy_config(path: Path, folder: Path) -> Mapping[str, Any]:
    """Copy a run's config into the release and return it; empty where there is none beside the checkpoint."""
    if not path.is_file():
        report(f"there is no {path}: the release has no config, and `evaluate` will need a --reference")
        return {}
    text = read_utf8(path)
    config = load_yaml(text, str(path))
    write_atomically(folder / hub.CONFIG, lambda file: file.write(text.encode()))
    if named := [line.strip() for line in text.splitlines() if line.partition(": ")[2].startswith(("/", "~"))]:
        report(f"{hub.CONFIG} names folders of this machine, such as {named[0]!r}; edit it if nobody should read them")
    return config if isinstance(config, dict) else {}


def _read_result(path: Path, digest: str) -> Mapping[str, Any]:
    """Return what ``evaluate`` wrote about the checkpoint of this digest."""
    result = read_json(path)
    if not isinstance(result, dict) or not {"metrics", "images", "n", "versions", "finished"} <= set(result):
        raise UserError(f"{path} is no result of `evaluate --out FILE.json`")
    if (found := result["images"].get("sha256")) != digest:
        raise UserError(
            f"{path} is a result of another checkpoint: its SHA-256 is {found}, and that of --ckpt is {digest}; "
            "evaluate this one"
        )
    if result["images"].get("weights") != "EMA":
        raise UserError(f"{path} is a result of the raw weights, and a release holds the averaged ones; omit --raw")
    return result


def _describe_parts(model: DDPM) -> dict[str, str]:
    """Return the name and the description of each part of a model."""
    count = sum(each.numel() for each in model.parameters())
    parts = {
        "images": "x".join(map(str, model.image_shape)) + " (channels, height, width)",
        "network": f"`{type(model.network).__name__}`, {count:,} parameters",
    }
    given = model.condition_format
    parts |= {"condition": given.describe()} if given.kinds else {}
    names = ("schedule", "parameterization", "objective", "sampler")
    parts |= {name: f"`{getattr(model, name)}`" for name in names}
    return parts | ({"classes": ", ".join(f"`{each}`" for each in model.class_names)} if model.class_names else {})


def _has_diffusers_form(model: DDPM) -> bool:
    try:
        make_pipeline_configs(model)
    except UserError:
        return False
    return True


def _write_samples(model: DDPM, n: int, path: Path) -> str | None:
    """Generate n images by the checkpoint's own sampler, write them as a grid, and return how they were generated.

    There are none of a model that is conditioned on more than a class: nothing is known here to condition it on.
    """
    if model.condition_format.kinds:
        report(f"the model card shows no samples: the model is conditioned on {model.condition_format.describe()}")
        return None
    device = Fabric(accelerator="auto", devices=1).device
    labels: Sequence[int] | None = list(range(len(model.class_names))) or None
    report(f"generating {n} images for the model card by {model.sampler} on {device.type}; --samples 0 writes none")
    pixels = generate(model.to(device), n, labels=labels).cpu()
    preview = choose_preview(model.values, model.image_shape[0])
    write_atomically(path, partial(save_image, preview.arrange(model.values, pixels)))
    model.to(torch.device("cpu"))
    classes = ", the classes in turn" if labels else ""
    return f"{n} images that were not chosen: seed 0, `{model.sampler}`, averaged weights{classes}"
