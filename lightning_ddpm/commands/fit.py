"""fit, validate, test and predict: LightningCLI with the run's folder and the data's shape filled in."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from lightning_ddpm import callbacks as ours
from lightning_ddpm.callbacks.resume import compare_configs
from lightning_ddpm.commands import run_folder
from lightning_ddpm.commands.data_shape import fill_shape
from lightning_ddpm.commands.list_options import as_list, set_list_options, split_list_options
from lightning_ddpm.commands.loggers import (
    Stage,
    complete_loggers,
    let_logging_fail,
    list_identities,
    make_folders_optional,
)
from lightning_ddpm.commands.parsing import complete_names, explain, instantiate
from lightning_ddpm.commands.precision import AUTO, choose_precision
from lightning_ddpm.commands.trainer_options import (
    check_seed,
    check_trainer_options,
    explain_services,
    explain_trainer_errors,
)
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.checkpoint import build_hyper_parameters
from lightning_ddpm.models.checkpoint_io import DurableCheckpointIO
from lightning_ddpm.utils.allocation import check_size
from lightning_ddpm.utils.console import is_terminal, report
from lightning_ddpm.utils.contracts import describe_class
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.files import check_writable, write_atomically
from lightning_ddpm.utils.jsonargparse_internals import accept_value, keep_nested_text, prefer_integers
from lightning_ddpm.utils.lightning_internals import count_validation_interval_in_steps, list_child_processes
from lightning_ddpm.utils.paths import resolve_lightning_paths
from lightning_ddpm.utils.run_files import CONFIG, remove_run_files
from lightning_ddpm.utils.signals import end_with_ranks
from lightning_ddpm.utils.yaml_text import MODE, load_yaml

PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16, None)
"""The precisions of Lightning that keep the weights in float32."""


INVOCATION = ("ckpt_path", "weights_only")
"""Options of ``fit`` that belong to one call of it, not to the run, and are not kept in its config.yaml."""


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder when training starts, whatever the loggers are, and only then.

    Args:
        origin: path of the checkpoint that a new run starts from, empty for initial weights; ``None`` for a run that is
            resumed.
        comment: the first line of the file.
        arguments: see Lightning.
    """

    def __init__(self, *arguments: Any, origin: str | None = None, comment: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._origin, self._comment = origin, f"# {comment}\n" if comment else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: a run that is stopped before its first step leaves nothing behind."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            folder, config = Path(trainer.default_root_dir), self.config.clone()
            if self._origin is not None:
                run_folder.note_origin(folder, self._origin)
            for name in INVOCATION:
                config.pop(name, None)
            content = (self._comment + self.parser.dump(config, skip_unset=False)).encode()
            write_atomically(folder / CONFIG, lambda file: file.write(content))


class DDPMCLI(LightningCLI):
    """LightningCLI for this project."""

    _ckpt_path: str | None = None
    _step = 0
    _is_new = False
    _resumed: dict[str, Any] = {}  # noqa: RUF012
    _parsers: tuple[LightningArgumentParser, ...] = ()
    _class_names: list[str] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with ExitStack() as self._resources:
            try:
                super().__init__(*arguments, **options)
            except Exception:
                if self._is_new and not (hasattr(self, "trainer") and self.trainer.global_step):
                    remove_run_files(Path(self.config[self.subcommand].trainer.default_root_dir))
                raise

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(exit_on_error=False, allow_abbrev=False, parser_mode=MODE, **kwargs)
        self._parsers = (*self._parsers, parser)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        accept_value(parser, "trainer.precision", AUTO)
        prefer_integers(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        others, of_lists = split_list_options(complete_names(args))
        try:
            with keep_nested_text():
                super().parse_arguments(parser, others)
            set_list_options(self.config[args[0]], of_lists, args[0])
        except Exception as error:
            parsers = dict(zip(self.subcommands(), self._parsers[1:], strict=True))
            failure = explain(error, parsers[args[0]], others[1:], args[0])
        else:
            config = self.config[args[0]]
            check_seed(config.seed_everything)
            if config.trainer.default_root_dir is None:
                config.trainer.default_root_dir = run_folder.DEFAULT
            resolve_lightning_paths(config)
            # LightningCLI would let the hyperparameters of a checkpoint that stands here overrule the configuration
            self._ckpt_path, config.ckpt_path = run_folder.read_checkpoint_option(args, config.ckpt_path), None
            return
        raise failure

    def before_instantiate_classes(self) -> None:
        config, command = self.config[self.subcommand], str(self.subcommand)
        check_trainer_options(config.trainer, command)
        folder, writes = Path(config.trainer.default_root_dir), not config.trainer.fast_dev_run
        guards = command == "fit" and writes and run_folder.is_first_rank()
        if guards:
            self._resources.enter_context(run_folder.enter_run_folder(folder))
        elif writes:
            check_writable(folder)
        source = run_folder.find_source(folder, self._ckpt_path, command)
        if guards:
            self._is_new = run_folder.check_unused(folder, source)
        elif command == "predict" and writes and run_folder.is_first_rank():
            run_folder.check_no_predictions(folder)
        config.weights_only, config.ckpt_path = True, source.path and str(source.path)
        if source.content and (source.resumes or command != "fit"):
            self._step = source.content.get("global_step", 0)
        if source.content and source.resumes:
            self._resumed = source.content.get("callbacks", {}).get("Resume", {})
            rank_zero_only(report)(f"resuming after step {self._step} from {source.path}")
            if 0 < (config.trainer.max_steps or -1) <= self._step:
                rank_zero_only(report)(
                    f"all {config.trainer.max_steps} steps are done; --trainer.max_steps N adds some"
                )
        elif source.content:
            rank_zero_only(report)(f"{command}: the weights after step {self._step} from {source.path}")
        self.save_config_kwargs["origin"] = source.get_origin(folder)
        if choice := choose_precision(config.trainer, command, source.content, source.resumes):
            self.save_config_kwargs["comment"] = choice
            rank_zero_only(report)(choice)
        if config.get("model.init_args.network.init_args") is not None:
            self._class_names = fill_shape(config.model.init_args, config.data)
            _check_network_size(config.model.init_args.network)

    def instantiate_classes(self) -> None:
        self.config_dump = self._dump_complete_config()
        # jsonargparse copies a list once for each of its items, and YAML takes some names for numbers
        names = {"class_names": self._class_names} if self._class_names else {}
        self.config_dump["model"].get("init_args", {}).update(names)
        compare_configs(self.config_dump, self._resumed.get("config"))  # raises before a network of another size does
        self.config_init = instantiate(self.parser, self._complete_config(), LightningModule, names)
        config = self.config_init[self.subcommand]
        self.datamodule, self.model = config.data, config.model
        self.trainer = self.instantiate_trainer()
        end_with_ranks(partial(list_child_processes, self.trainer.strategy))

    def _complete_config(self) -> Namespace:
        """Return the configuration with what only this process needs to know, and config.yaml does not."""
        config: Namespace = self.config.clone()
        trainer = config[str(self.subcommand)].trainer
        folder = Path(trainer.default_root_dir)
        stage = Stage(str(self.subcommand), folder, self._step, self._resumed.get("loggers", ()))
        trainer.logger = complete_loggers(trainer.logger, stage)
        return config

    def _dump_complete_config(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        text = self.parser.dump(self.config, skip_link_targets=False, skip_unset=False)
        config: dict[str, Any] = load_yaml(text)[self.subcommand]
        return config

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        if config.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision {config.precision} does not keep the weights in float32, as EMA requires; "
                "use bf16-mixed or 16-mixed, whose network computes in half precision, or 32-true"
            )
        first, last = (
            [ours.TrialStep(), ours.Throughput(), ours.RunSummary()],
            [ours.PredictionWriter(), ours.RankExchange(), ours.StopAllRanks()],
        )
        callbacks = [*first, *as_list(config.callbacks), *last]
        if not any(isinstance(each, ours.NonFinite) for each in callbacks):
            callbacks.append(ours.NonFinite())
        used = as_list(config.logger)
        for each in used:
            let_logging_fail(each)
        resume = ours.Resume(self.config_dump, self._resumed.get("config"), partial(list_identities, used))
        kwargs["callbacks"] = [resume, *callbacks]
        plugins = as_list(config.plugins)
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        if used and not config.fast_dev_run:
            kwargs["callbacks"].append(ours.LearningRate())
        if config.enable_progress_bar is not False:
            kwargs["callbacks"].append(ours.ProgressRich() if is_terminal() else ours.ProgressLines())
        with explain_trainer_errors(self.config[self.subcommand].trainer):
            trainer = super().instantiate_trainer(**kwargs)
        count_validation_interval_in_steps(trainer)
        return trainer

    def after_instantiate_classes(self) -> None:
        _check_step(self.model, str(self.subcommand))
        self.model.save_hyperparameters(build_hyper_parameters(self.config_dump["model"]), logger=False)


def _check_network_size(network: Namespace) -> None:
    """Check that a network of this package fits into the memory; others are not built twice."""
    if network.class_path.startswith("lightning_ddpm."):
        arguments = network.init_args.as_dict() if network.get("init_args") else {}
        check_size(resolve_name(network.class_path), arguments, "model.network")


def _check_step(model: LightningModule, command: str) -> None:
    """Refuse a command that the module has no step for, as one that only generates has none for ``test``."""
    name = {"fit": "training_step", "validate": "validation_step"}.get(command, f"{command}_step")
    if getattr(type(model), name) is getattr(LightningModule, name):
        raise UserError(f"{command} needs a module with {name}, and {describe_class(type(model))} has none; define it")


def run(arguments: Sequence[str]) -> None:
    """Run one of Lightning's commands.

    Args:
        arguments: the command and its options.
    """
    _silence_lightning()
    with make_folders_optional(), explain_services():
        DDPMCLI(
            LightningModule,
            ImageDataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False},
            parser_kwargs={"prog": "lightning-ddpm"},
            args=list(arguments),
        )


def _silence_lightning() -> None:
    """Hide hints of Lightning that do not apply here."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "litlogger" not in record.getMessage())
    logging.getLogger("lightning_fabric.utilities.seed").addFilter(lambda record: "Seed set" not in record.getMessage())
    hints = "does not have many workers", "exists and is not empty", "LeafSpec", "infer the batch indices"
    for hint in (*hints, "args parameter is intended to run from within Python"):
        warnings.filterwarnings("ignore", message=f".*{hint}")
