"""fit, validate, test and predict: LightningCLI with the run's folder and the data's shape filled in."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm.callbacks import (
    LearningRate,
    NonFinite,
    PredictionWriter,
    ProgressLines,
    ProgressRich,
    Resume,
    RunLogger,
    RunSummary,
    StopAllRanks,
    Throughput,
)
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.checkpoint import build_hyper_parameters, read_checkpoint, read_newest_checkpoint
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.utils.console import is_terminal, report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable

PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16, None)
"""Of Lightning's, those that keep the weights in float32."""


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder when training starts, and only then."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class DDPMCLI(LightningCLI):
    """LightningCLI for this project."""

    _step = 0  # of the checkpoint that a fit goes on from
    _before: dict[str, Any] | None = None  # its config

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would let the checkpoint's hyper-parameters overrule it."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self._resolve_checkpoint(config)
        if config.get("model.init_args.network.init_args") is not None:
            _fill_shape(config.model.init_args, config.data)

    def _resolve_checkpoint(self, config: Namespace) -> None:
        folder = Path(config.trainer.default_root_dir or ".")
        config.weights_only = True
        begins, checkpoint = self.subcommand == "fit", None
        if config.get("ckpt_path") in ("last", "best"):
            asked = folder / f"{config.ckpt_path}.ckpt"
            checkpoint, found = read_newest_checkpoint(asked)
            if found != asked:
                rank_zero_only(report)(f"{asked} is lost or damaged; taking the one before it, {found}")
            config.ckpt_path = str(found)
        elif config.get("ckpt_path"):
            checkpoint = read_checkpoint(config.ckpt_path)
        elif self.subcommand != "fit":
            raise UserError(f"{self.subcommand} needs trained weights: give --ckpt_path RUN/last.ckpt")
        if begins and checkpoint and checkpoint.get("optimizer_states") != []:  # else an imported model, to fine-tune
            begins, self._step = False, checkpoint["global_step"]
            self._before = checkpoint.get("callbacks", {}).get("Resume", {}).get("config")
            rank_zero_only(report)(f"going on after step {self._step}, from {config.ckpt_path}")
        if begins and (folder / "last.ckpt").exists():
            raise UserError(
                f"{folder} already holds a run; go on with it by --ckpt_path last, start another with "
                "--trainer.default_root_dir FOLDER, or delete it"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision {config.precision} does not keep the weights in float32, as their average needs; "
                "take bf16-mixed or 16-mixed, whose network computes in half, or 32-true"
            )
        folder = Path(config.default_root_dir or "checkpoints/run")
        if not config.fast_dev_run:
            check_writable(folder)
        kwargs["default_root_dir"] = str(folder)
        self._dump_config()
        callbacks = [Throughput(), RunSummary(), *(config.callbacks or []), PredictionWriter(), StopAllRanks()]
        if not any(isinstance(each, NonFinite) for each in callbacks):
            callbacks.append(NonFinite())
        kwargs["callbacks"] = [Resume(self.config_dump, self._before), *callbacks]
        plugins = config.plugins if isinstance(config.plugins, list) else [each for each in [config.plugins] if each]
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        if config.logger is None or config.logger is True:
            kwargs["logger"] = RunLogger(folder, self._step)
        if config.logger is not False and not config.fast_dev_run:
            kwargs["callbacks"].append(LearningRate())
        if config.enable_progress_bar is not False:
            kwargs["callbacks"].append(ProgressRich() if is_terminal() else ProgressLines())
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        self._dump_config()
        self.model.save_hyperparameters(build_hyper_parameters(self.config_dump["model"]), logger=False)


def _fill_shape(model: Namespace, data: Namespace) -> None:
    """Tell the network its images' channels, size and classes, and the model what these are called, or refuse what
    they say of them themselves."""
    arguments = model.network.init_args
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageDataModule, "data", fail_untyped=False)
    module = parser.instantiate(Namespace(data=data.clone())).data  # type: ignore[no-untyped-call]
    shape = {"channels": module.channels, "size": module.size}
    if arguments.get("classes", 0) != 0:  # asked for, by number or as the data has
        names = module.class_names()
        shape["classes"] = len(names)
        if names and "class_names" in model and model.class_names is None:
            model.class_names = names
    for name, given in shape.items():
        if arguments.get(name, given) is None:
            arguments[name] = given or None  # no labels: the network says that it needs them
        elif name in arguments and arguments[name] != given:
            raise UserError(
                f"the data has {name}={given} and the network is told {name}={arguments[name]}; let "
                f"model.network.{name} be null to take the data's, or change the data"
            )


def run(arguments: Sequence[str]) -> None:
    """Run one of Lightning's commands.

    Args:
        arguments: the command and its options.
    """
    _quiet()
    DDPMCLI(
        LightningModule,
        ImageDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        trainer_defaults={"enable_model_summary": False},
        parser_kwargs={"prog": "lightning-ddpm"},
        args=list(arguments),
    )


def _quiet() -> None:
    """Leave out what Lightning says to everybody and helps nobody here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{name}.utilities.rank_zero").addFilter(
            lambda record: "litlogger" not in record.getMessage()
        )
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*infer the batch indices.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
