"""The loggers of a run: all of them in its folder, and continued when it is resumed."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import loggers
from pytorch_lightning.loggers import Logger

from lightning_ddpm.callbacks import RunLogger, RunTable
from lightning_ddpm.utils.viewing import write_for_viewing

FOLDERS: dict[type[Logger], str] = {
    loggers.TensorBoardLogger: "save_dir",
    loggers.CSVLogger: "save_dir",
    loggers.WandbLogger: "save_dir",
    loggers.MLFlowLogger: "save_dir",
    RunLogger: "folder",
    RunTable: "folder",
}
"""The argument of each logger that is the folder of its files."""

IDENTITIES: dict[type[Logger], str] = {
    loggers.WandbLogger: "id",
    loggers.MLFlowLogger: "run_id",
    loggers.CometLogger: "experiment_key",
}
"""The argument of each logger by which a service knows the run; the logger has it as ``version``."""

OURS: dict[type[Logger], type[Logger]] = {loggers.TensorBoardLogger: RunLogger, loggers.CSVLogger: RunTable}
"""The loggers that would begin new files when a run is resumed, and what continues the files instead."""

GUARDED = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


@dataclass(frozen=True)
class Stage:
    """What the loggers of a command need to know.

    Attributes:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        folder: the run's folder.
        step: the number of steps that the checkpoint's run has done; 0 without one.
        identities: what :func:`list_identities` returned in the run that is resumed.
    """

    command: str
    folder: Path
    step: int = 0
    identities: Sequence[Sequence[str | None]] = ()


@contextmanager
def make_folders_optional() -> Iterator[None]:
    """Let Lightning's loggers be named without their folder; :func:`complete_loggers` then gives them the run's."""
    before = {kind: kind.__init__.__defaults__ for kind in FOLDERS}
    try:
        for kind, folder in FOLDERS.items():
            parameters = [
                each
                for each in inspect.signature(kind.__init__).parameters.values()
                if each.kind is each.POSITIONAL_OR_KEYWORD
            ]
            names = [each.name for each in parameters]
            first = names.index(folder)
            values = [None if each.name == folder else each.default for each in parameters]
            optional = next(i for i, each in enumerate(parameters) if i == first or each.default is not each.empty)
            kind.__init__.__defaults__ = tuple(values[optional:])
        yield
    finally:
        for kind, defaults in before.items():
            kind.__init__.__defaults__ = defaults


def complete_loggers(config: Any, stage: Stage) -> Any:
    """Return ``trainer.logger`` of a config with folders, identities and steps in every logger that it names.

    What ``validate``, ``test`` and ``predict`` log goes into a folder of the command's name, because it would hide or
    repeat points of the run's curves.

    Args:
        config: ``None`` or ``True`` for TensorBoard, ``False`` for nothing, one logger or several.
        stage: the command and its run.
    """
    if config is False:
        return False
    if config is None or config is True:
        config = _describe(RunLogger)
    if not isinstance(config, list):
        return _complete(config, stage, stage.identities[0] if stage.identities else ())
    identities = [*stage.identities, *[()] * len(config)]
    return [_complete(each, stage, known) for each, known in zip(config, identities, strict=False)]


def list_identities(used: Sequence[Logger]) -> list[list[str | None]]:
    """Return the name of each logger's class, and by which id a service knows the run."""
    named = ((each, next((True for kind in IDENTITIES if isinstance(each, kind)), False)) for each in used)
    return [[type(each).__name__, str(each.version) if known and each.version else None] for each, known in named]


def let_logging_fail(logger: Logger) -> None:
    """Have a logger that fails report it once, where it would end training; the project's own do so by themselves."""
    if isinstance(logger, RunLogger | RunTable):
        return
    what = f"the metrics of {type(logger).__name__}"

    def guard(call: Callable[..., Any]) -> Callable[..., None]:
        def attempt(*args: Any, **kwargs: Any) -> None:
            write_for_viewing(what, partial(call, *args, **kwargs), Exception)

        return attempt

    for name in GUARDED:
        setattr(logger, name, guard(getattr(logger, name)))


def _complete(config: Any, stage: Stage, identity: Sequence[str | None]) -> Any:
    module, _, name = config.class_path.rpartition(".")
    given: type[Logger] = getattr(import_module(module), name)
    arguments = dict(vars(config.init_args)) if config.get("init_args") else {}
    folder = _choose_folder(given, arguments, stage)
    kind = OURS.get(given, given)
    if kind in (RunLogger, RunTable):
        known = {"folder": folder, "prefix": arguments.get("prefix", "")}
        if stage.command == "fit":
            known["step"] = stage.step
        elif kind is RunLogger:
            known["at_step"] = stage.step
        return _describe(kind, known)
    if given in FOLDERS:
        arguments[FOLDERS[given]] = str(folder)
    argument = IDENTITIES.get(given)
    if argument and stage.command == "fit" and identity and identity[0] == name and not arguments.get(argument):
        arguments[argument] = identity[1]
    return _describe(given, arguments)


def _describe(kind: type[Logger], arguments: dict[str, Any] | None = None) -> Namespace:
    """Return the configuration that :func:`~lightning_ddpm.commands.parsing.instantiate` builds the logger from."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    return Namespace(class_path=path, init_args=Namespace(**(arguments or {})))  # type: ignore[no-untyped-call]


def _choose_folder(kind: type[Logger], arguments: dict[str, Any], stage: Stage) -> Path:
    """Return the folder of a logger's files: the given one, or the run's; versions of it only where they are given."""
    own = stage.folder / "mlruns" if kind is loggers.MLFlowLogger else stage.folder
    folder = Path(arguments.get(FOLDERS.get(kind, "")) or own)
    if kind in OURS:
        name, version = arguments.get("name"), arguments.get("version")
        folder /= "" if name in (None, "lightning_logs") else name
        folder /= "" if version is None else version if isinstance(version, str) else f"version_{version}"
        folder /= arguments.get("sub_dir") or ""
    return folder if stage.command == "fit" else folder / stage.command
