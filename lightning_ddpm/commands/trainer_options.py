"""Checks of the Trainer's options, and of the same options of the other commands, in the words of the command line."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException

from lightning_ddpm.commands.list_options import as_list
from lightning_ddpm.utils.errors import UserError, first_line


class Least(NamedTuple):
    """The least value of an option, and what to give for what the user may have meant."""

    value: int
    fix: str


LEAST = {
    "max_steps": Least(1, "-1 is no limit"),
    "max_epochs": Least(1, "-1 is no limit"),
    "min_steps": Least(0, "leave it out for none"),
    "min_epochs": Least(0, "leave it out for none"),
    "num_nodes": Least(1, "it is the number of machines"),
    "accumulate_grad_batches": Least(1, "1 makes a step of every batch"),
    "log_every_n_steps": Least(1, "--trainer.logger false turns logging off"),
    "check_val_every_n_epoch": Least(1, "--trainer.limit_val_batches 0 turns validation off"),
    "reload_dataloaders_every_n_epochs": Least(0, "0 is never"),
    "gradient_clip_val": Least(0, "null turns clipping off"),
    "fast_dev_run": Least(0, "false turns it off"),
    "num_sanity_val_steps": Least(0, "-1 is the whole validation set"),
}
ALSO = {"max_steps": -1, "max_epochs": -1, "num_sanity_val_steps": -1}
"""Values below the least that have a meaning of their own."""
SHARES = ("overfit_batches", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
"""Options that are a number of batches, or as a fraction a share of them."""
WORK = {
    "fit": ("limit_train_batches", "train on"),
    "validate": ("limit_val_batches", "validate on"),
    "test": ("limit_test_batches", "test on"),
    "predict": ("limit_predict_batches", "generate"),
}
"""The share that a command works on, which must not be 0, and what it does with it."""
OF_DEVICES = {"accelerator", "devices", "num_nodes", "strategy", "precision"}
OF_LIGHTNING = (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError)
"""What Lightning raises for options that it refuses."""
SHARDED = ("fsdp", "deepspeed", "modelparallel")
"""Strategies that split the weights over devices, by what their names and classes contain."""
SERVICES = ("wandb", "mlflow", "comet_ml", "neptune")
PROFILERS = ("simple", "advanced", "pytorch", "xla")


def check_seed(seed: int | bool | None) -> None:
    """Check that the seed of a run is one that all libraries take.

    Raises:
        UserError: it is not.
    """
    if seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"--seed_everything must lie in [0, {2**32 - 1}], got {seed}")


def check_trainer_options(trainer: Namespace, command: str = "fit") -> None:
    """Check what can be known of the Trainer's options before there is a Trainer.

    Args:
        trainer: its options.
        command: the command that uses them.

    Raises:
        UserError: an option has a value with which no run can start, or which would do nothing.
    """
    for name, (least, fix) in LEAST.items():
        value = trainer.get(name)
        if value is None or isinstance(value, bool) or value == ALSO.get(name):
            continue
        if not least <= value < math.inf:
            raise UserError(f"--trainer.{name} must be at least {least}, got {value}; {fix}")
    for name in SHARES:
        value = trainer.get(name)
        if value is not None and not (0 <= value <= 1 if isinstance(value, float) else value >= 0):
            raise UserError(
                f"--trainer.{name} is a number of batches, or a share of them in [0.0, 1.0], got {value}; leave it out "
                "for all of them"
            )
    limit, work = WORK[command]
    if trainer.get(limit) == 0:
        raise UserError(f"--trainer.{limit} 0 leaves nothing to {work}; leave it out for all batches")
    _check_validation(trainer)
    check_strategy(trainer.get("strategy"), "--trainer.strategy")
    if isinstance(profiler := trainer.get("profiler"), str) and profiler not in PROFILERS:
        raise UserError(f"there is no --trainer.profiler {profiler}; there are {', '.join(PROFILERS)}")
    if trainer.get("barebones"):
        raise UserError("--trainer.barebones true turns off checkpoints, logging and callbacks; leave it out")
    callbacks = trainer.get("callbacks")
    listed = as_list(callbacks)
    kept = [each.class_path for each in listed if each.class_path.endswith("Checkpoints")]
    if trainer.get("enable_checkpointing") is False and kept:
        raise UserError(
            f"--trainer.enable_checkpointing false contradicts the callback {kept[0]}; remove one of the two"
        )


def check_strategy(strategy: Any, option: str) -> None:
    """Refuse strategies that split the weights over devices.

    Args:
        strategy: a name, or a class in a config.
        option: where it is given, for the message.

    Raises:
        UserError: it is such a strategy.
    """
    name = str(getattr(strategy, "class_path", strategy))
    if any(each in name.replace("_", "").lower() for each in SHARDED):
        raise UserError(
            f"{option} {name} splits the weights over the devices, and the moving average, the checkpoints and the "
            "check of each step need them whole; use ddp. A model of 256 million parameters takes 5 GB with gradients, "
            "average and Adam's state; the rest is activations, which a smaller data.batch_size with "
            "trainer.accumulate_grad_batches reduces"
        )


def _check_validation(trainer: Namespace) -> None:
    interval = trainer.get("val_check_interval")
    if interval is None or isinstance(interval, str):
        return
    if isinstance(interval, (int, float)) and interval <= 0:
        raise UserError(
            f"--trainer.val_check_interval must be more than 0, got {interval}; --trainer.limit_val_batches 0 turns "
            "validation off"
        )
    if isinstance(interval, float):
        if interval > 1:
            raise UserError(
                f"--trainer.val_check_interval is a share of an epoch in (0, 1], or a whole number, got {interval}"
            )
        if trainer.get("check_val_every_n_epoch") is None:
            raise UserError(
                f"--trainer.val_check_interval {interval} is a share of an epoch, and check_val_every_n_epoch is null, "
                "which counts steps across epochs; give a whole number, or --trainer.check_val_every_n_epoch 1"
            )


@contextmanager
def explain_trainer_errors(trainer: Namespace) -> Iterator[None]:
    """Turn what Lightning raises for options that do not fit this machine, or one another, into a sentence.

    Args:
        trainer: the Trainer's options.
    """
    try:
        yield
    except UserError:
        raise
    except OF_LIGHTNING as error:
        raise explain_options(error, trainer, "--trainer.") from error


def explain_options(error: Exception, options: Namespace, prefix: str) -> UserError:
    """Return a sentence for an exception of Lightning: the options that it is about, and their values.

    Args:
        error: what Lightning raised.
        options: with the names of Lightning's Trainer.
        prefix: what stands before these names on the command line.
    """
    text = first_line(error).replace("Timer(duration", "Trainer(max_time").strip()
    given = {name: value for name, value in vars(options).items() if value not in (None, "auto")}
    named = [name for name in given if re.search(rf"\b{name}\b", text) and name not in ("callbacks", "logger")]
    named = named or sorted(name for name in OF_DEVICES if name in given and given[name] not in (1, "32-true"))
    listed = ", ".join(f"{prefix}{name} {_show(given[name])}" for name in named)
    return UserError(f"{listed} cannot be used here ({text.rstrip('.')}); change or remove it")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def explain_services() -> Iterator[None]:
    """Turn what the client of a logging service raises, as for a missing login, into a sentence."""
    try:
        yield
    except Exception as error:
        service = type(error).__module__.partition(".")[0]
        if service not in SERVICES:
            raise
        raise UserError(
            f"--trainer.logger: {service} cannot be used here ({first_line(error).rstrip('.')}); set it up, or log to "
            "files, with --trainer.logger TensorBoardLogger or CSVLogger"
        ) from error
