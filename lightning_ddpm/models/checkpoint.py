"""Checkpoints: written so that there is always a whole one, read without running what is in them."""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse._common import parsing_settings
from pytorch_lightning import LightningModule

from lightning_ddpm.utils.errors import UserError, first_line
from lightning_ddpm.utils.files import check_published, sync_folder, write_atomically
from lightning_ddpm.utils.hashing import hash_content

DIGEST_KEY = "sha256"
"""Under this key a checkpoint has the :func:`hash_content` of all the others."""

Module = TypeVar("Module", bound=LightningModule)

TRUSTED_MODULES = ("lightning_ddpm", "torch.nn", "torch.optim")
"""What a file may name to be built; more by the user's own word in ``$LIGHTNING_DDPM_TRUST``."""


def build_hyper_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint must say for the model to be built from it alone, in Lightning's own form.

    Args:
        config: the complete ``class_path`` and ``init_args`` of a LightningModule, as plain data.
    """
    return {
        "_class_path": config["class_path"],
        "_instantiator": "pytorch_lightning.cli.instantiate_module",
        **config.get("init_args", {}),
    }


def previous_path(path: Path) -> Path:
    """Where :func:`write_checkpoint` keeps the checkpoint that was at a path before."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def pending_path(path: Path) -> Path:
    """Where :func:`write_checkpoint` keeps that checkpoint until the new one is whole; a killed process may leave it there."""
    return path.with_name(f".{path.name}.before")


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint with its digest, and keep the one before it.

    There is a whole one at ``path`` at every moment after the first, whatever ends the process or the machine.

    Raises:
        OSError, RuntimeError: it cannot be written; what was there is there.
    """
    before = pending_path(path)
    if path.exists():
        before.unlink(missing_ok=True)
        try:
            os.link(path, before)
        except OSError:  # no hard links here: only the newest is kept
            before.unlink(missing_ok=True)
    try:
        write_atomically(path, lambda file: torch.save({**content, DIGEST_KEY: hash_content(content)}, file))
    except BaseException:
        before.unlink(missing_ok=True)
        raise
    if before.exists():
        os.replace(before, previous_path(path))
        sync_folder(path.parent)


def read_newest_checkpoint(path: Path) -> tuple[dict[str, Any], Path]:
    """What :func:`read_checkpoint` gives, from the checkpoint before it where it is damaged or lost; and which one it is.

    Raises:
        UserError: none can be read.
    """
    *newer, oldest = [path, *(each for each in (pending_path(path), previous_path(path)) if each.is_file())]
    for each in newer:
        with suppress(UserError):
            return read_checkpoint(each), each
    return read_checkpoint(oldest), oldest


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, weights and plain data only.

    Raises:
        UserError: no such file, not the published one, damaged, holding code, or of another program.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise UserError(
            f"there is no checkpoint {path}" + (f"; there is {', '.join(map(str, there))}" if there else "")
        )
    check_published(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than weights and plain data, or is no checkpoint, and reading it could "
            f"run a program ({first_line(error)})"
        ) from error
    except Exception as error:  # unpickling what is no pickle fails in any way
        raise UserError(f"{path} is no checkpoint, or damaged: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= set(checkpoint):
        raise UserError(f"{path} is a checkpoint of another program: it does not say which model it is of")
    if not isinstance(checkpoint["hyper_parameters"], dict) or "_class_path" not in checkpoint["hyper_parameters"]:
        raise UserError(f"{path} does not say how to build its model; only runs of `lightning_ddpm fit` do")
    written = checkpoint.pop(DIGEST_KEY, None)  # imported and shipped models have none
    if written not in (None, hash_content(checkpoint)):
        raise UserError(
            f"{path} is damaged, or was changed and has its {DIGEST_KEY!r} still: its content is not what was written"
        )
    return checkpoint


@contextmanager
def restrict_imports(path: Path | str) -> Iterator[None]:
    """Whatever a file names and jsonargparse would import is refused here, unless it is :data:`TRUSTED_MODULES` or trusted.

    An import runs the module, and a module may lie beside the file. The names that count are those under which objects
    were defined: ``lightning_ddpm.utils.files.os.system`` is none of ours.

    Args:
        path: the file that names things, for the message.

    Raises:
        UserError: it names something else.
    """
    trusted = [name.strip() for name in os.environ.get("LIGHTNING_DDPM_TRUST", "").split(",") if name.strip()]
    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*TRUSTED_MODULES, *trusted])
    try:
        yield
    except Exception as error:
        if denied := re.search(r"Importing '([\w.]+)' is not allowed", str(error)):
            raise UserError(
                f"{path} is refused: it names {denied[1]}, which is not of {', '.join(TRUSTED_MODULES)}, and building it "
                f"would run its code; if you trust that code, set LIGHTNING_DDPM_TRUST={denied[1].split('.')[0]}"
            ) from error
        raise
    finally:
        parsing_settings.update(before)  # the options of the command line may name anything


def build_module(parameters: dict[str, Any], kind: type[Module], path: Path | str) -> Module:
    """The model that :func:`build_hyper_parameters` describe, as its class initialises it.

    Its optimizer is left out: a newer torch may know arguments that this one does not, and nothing is trained here.

    Args:
        parameters: what :func:`build_hyper_parameters` gave.
        kind: the class that the model must have.
        path: where they come from, for the message.

    Raises:
        UserError: this model cannot be built here, or names what is not :func:`trusted <distrusting>`.
    """
    config = dict(parameters)
    class_path = config.pop("_class_path")
    for name in ("_instantiator", "optimizer", "lr_scheduler"):
        config.pop(name, None)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "model", fail_untyped=False)
    with restrict_imports(path):
        try:
            parsed = parser.parse_object({"model": {"class_path": class_path, "init_args": config}})
            return parser.instantiate(parsed).model  # type: ignore[no-any-return]
        except Exception as error:  # jsonargparse has many; all mean that this model cannot be built here
            raise UserError(
                f"{path} is of {class_path}, which cannot be built as {kind.__name__} here: {error}"
            ) from error


def load(path: Path | str, kind: type[Module], raw: bool = False) -> Module:
    """The model of a checkpoint, built and filled from it alone, in evaluation mode on the CPU.

    Args:
        path: the file.
        kind: the class that the model must have.
        raw: take the weights as trained, not their moving average.

    Raises:
        UserError: as :func:`read_checkpoint`, or the checkpoint is of something else, or has no raw weights.
    """
    checkpoint = read_checkpoint(path)
    module = build_module(checkpoint["hyper_parameters"], kind, path)
    if raw and "current_model_state" not in checkpoint:
        raise UserError(f"{path} has no raw weights beside its averaged ones; leave --raw out")
    try:
        module.load_state_dict(checkpoint["current_model_state" if raw else "state_dict"])
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} does not have the weights of the model that it names: {error}") from error
    return module.eval()
