"""Checkpoints: written so that a complete one always exists, and read without running code that is in them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.models.checkpoint_source import locate_checkpoint
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.trusted_imports import NOT_BUILT, restrict_imports
from lightning_ddpm.utils.allocation import limit_to_weights
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_published, link_atomically, sync_folder, write_atomically
from lightning_ddpm.utils.hashing import hash_content
from lightning_ddpm.utils.instantiate import instantiate
from lightning_ddpm.utils.run_files import UNSAVED
from lightning_ddpm.utils.shipped import CHECKPOINTS
from lightning_ddpm.utils.torch_files import copy_to_host, read_torch_file, save_with_digest
from lightning_ddpm.utils.yaml_text import build_parser

DIGEST_KEY = "sha256"
"""Key that holds the :func:`hash_content` of all other keys, in checkpoints of earlier versions."""

Module = TypeVar("Module", bound=LightningModule)


def build_hyper_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters from which a model can be built without its config, in Lightning's own format.

    Args:
        config: the complete ``class_path`` and ``init_args`` of a LightningModule, as plain data.
    """
    instantiator = "pytorch_lightning.cli.instantiate_module"
    return {"_class_path": config["class_path"], "_instantiator": instantiator, **config.get("init_args", {})}


def previous_path(path: Path) -> Path:
    """Return where :func:`write_checkpoint` keeps the checkpoint that it replaced."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def pending_path(path: Path) -> Path:
    """Return where it is while :func:`write_checkpoint` writes the new one; a killed process may leave it there."""
    return path.with_name(f".{path.name}.before")


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint with its digest, and keep the previous one.

    Once the first one is written, ``path`` holds a complete checkpoint at every moment, even if the process is killed
    or the machine fails.

    Raises:
        OSError, RuntimeError: it cannot be written; the previous one is still there.
    """
    with _keep_previous(path):
        write_atomically(path, partial(save_with_digest, copy_to_host(content)))


def link_checkpoint(path: Path, written: Path) -> None:
    """Make a checkpoint a hard link to one that has just been written, with equal content; keep the previous one.

    Replacing one of the two later, as :func:`write_checkpoint` does, leaves the other as it is.

    Raises:
        OSError: the file system has no hard links; the previous one is still there.
    """
    with _keep_previous(path):
        link_atomically(path, written)


@contextmanager
def _keep_previous(path: Path) -> Iterator[None]:
    """Keep the checkpoint that is replaced inside the context."""
    before = pending_path(path)
    if path.exists():
        before.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without hard links keeps only the newest one
            os.link(path, before)
    try:
        yield
        (path.parent / UNSAVED).unlink(missing_ok=True)
        if before.exists():
            os.replace(before, previous_path(path))
            sync_folder(path.parent)
    finally:
        before.unlink(missing_ok=True)


def finish_writing(path: Path) -> None:
    """Keep the checkpoint that a killed process left in :func:`pending_path` as the previous one."""
    pending = pending_path(path)
    if pending.exists():
        if path.exists() and pending.samefile(path):  # it was killed before it wrote the new one
            pending.unlink()
        else:
            os.replace(pending, previous_path(path))


def read_newest_checkpoint(path: Path) -> tuple[dict[str, Any], Path]:
    """Read a checkpoint, or the previous one if it is damaged or missing; return its content and its path.

    Raises:
        UserError: neither can be read.
    """
    *newer, oldest = [path, *(each for each in (pending_path(path), previous_path(path)) if each.is_file())]
    for each in newer:
        with suppress(UserError):
            return read_checkpoint(each), each
    return read_checkpoint(oldest), oldest


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the content of a checkpoint: weights and plain data only.

    Raises:
        UserError: the file is missing, damaged, not the published one, holds code, or was written by another program.
    """
    path = locate_checkpoint(path)
    if not path.is_file():
        others = ", ".join(map(str, sorted((path if path.is_dir() else path.parent).glob("*.ckpt"))))
        what = ", which is a folder" if path.is_dir() else ""
        found = f"; there is {others}" if others else CHECKPOINTS.suggest(path)
        raise UserError(f"there is no checkpoint {path}{what}{found}")
    check_published(path)
    checkpoint = read_torch_file(path, "a checkpoint")
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= set(checkpoint):
        raise UserError(f"{path} is a checkpoint of another program: it has no 'state_dict' and 'hyper_parameters'")
    if not isinstance(checkpoint["hyper_parameters"], dict) or "_class_path" not in checkpoint["hyper_parameters"]:
        raise UserError(f"{path} does not describe its model; use a checkpoint of `lightning_ddpm fit` or `import`")
    for name in ("state_dict", "current_model_state"):
        weights = checkpoint.get(name, {})
        if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
            raise UserError(f"{path} is a checkpoint of another program: its {name!r} holds more than weights")
    written = checkpoint.pop(DIGEST_KEY, None)  # imported models and those that ship have none
    if written not in (None, hash_content(checkpoint)):
        raise UserError(
            f"{path} is damaged, or was changed without removing {DIGEST_KEY!r}: its content is not what was written"
        )
    return checkpoint


def build_checkpoint(state: dict[str, Tensor], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of weights alone, for ``sample`` and for ``fit --ckpt_path``, which fine-tunes them.

    Args:
        state: the model's ``state_dict``.
        parameters: what :func:`build_hyper_parameters` returned.
    """
    return {
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


MAX_LENGTH = 5000
"""Longest list among the hyper-parameters, apart from class names: jsonargparse copies it once for each item."""


def _find_long_list(parameters: object, name: str = "") -> str | None:
    """Return the dotted name of a list that is too long, if there is one."""
    if isinstance(parameters, dict):
        pairs = [(f"{name}.{key}" if name else str(key), value) for key, value in parameters.items()]
    elif isinstance(parameters, list | tuple):
        if len(parameters) > MAX_LENGTH:
            return name
        pairs = [(name, value) for value in parameters]
    else:
        return None
    return next((found for key, value in pairs if (found := _find_long_list(value, key))), None)


def build_module(
    parameters: dict[str, Any], kind: type[Module], path: Path | str, weights: Mapping[str, Tensor]
) -> Module:
    """Build the module that :func:`build_hyper_parameters` describes, with initial weights.

    It gets no optimizer: nothing is trained here, and a newer torch may have saved arguments that this one lacks.

    Args:
        parameters: what :func:`build_hyper_parameters` returned.
        kind: the class that the module must have.
        path: the file that they come from, for the message.
        weights: the weights that the module will get: it is not built if it is far larger.

    Raises:
        UserError: the module cannot be built here, or names code that is :func:`not trusted <restrict_imports>`.
    """
    others = ("_class_path", "class_names", *NOT_BUILT)
    class_path, init_args = parameters["_class_path"], {k: v for k, v in parameters.items() if k not in others}
    names = {"class_names": parameters["class_names"]} if parameters.get("class_names") else {}
    if not isinstance(class_path, str) or not all(isinstance(each, str) for each in names.get("class_names", ())):
        raise UserError(f"{path} does not describe its model: a class path and class names must be text")
    if longest := _find_long_list(init_args):
        raise UserError(f"{path} is refused: its {longest} is a list of more than {MAX_LENGTH:,} items")
    model = deepcopy({"class_path": class_path, "init_args": init_args})  # the parser changes lists of classes in place
    parser = build_parser()
    parser.add_subclass_arguments(kind, "model", fail_untyped=False)
    with restrict_imports(path, model):
        try:
            options = parser.parse_object({"model": model})
            with limit_to_weights(weights, str(path)):
                return instantiate(parser, options, kind, names).model  # type: ignore[no-any-return]
        except Exception as error:  # jsonargparse raises many kinds; all mean that this module cannot be built here
            raise UserError(f"{path} holds {class_path}, which cannot be built as {kind.__name__}: {error}") from error


@overload
def load(path: Path | str, *, raw: bool = False) -> DDPM: ...


@overload
def load(path: Path | str, kind: type[Module], raw: bool = False) -> Module: ...


def load(path: Path | str, kind: type[LightningModule] = DDPM, raw: bool = False) -> LightningModule:
    """Return the model of a checkpoint, in evaluation mode on the CPU; nothing but the file is needed.

    Args:
        path: the file.
        kind: the class that the model must have.
        raw: use the weights as trained instead of their moving average.

    Raises:
        UserError: as :func:`read_checkpoint`, or the checkpoint holds another kind of model, or has no raw weights.
    """
    checkpoint = read_checkpoint(path)
    module = build_module(checkpoint["hyper_parameters"], kind, path, checkpoint["state_dict"])
    if raw and "current_model_state" not in checkpoint:
        raise UserError(f"{path} has no raw weights beside its averaged ones; omit --raw")
    try:
        module.load_state_dict(checkpoint["current_model_state" if raw else "state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not have the weights of the model that it describes: {error}") from error
    return module.eval()
