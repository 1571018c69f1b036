"""Lightning's private API, as far as the package uses it: a release that removes a part fails here in words."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn

from lightning_ddpm.callbacks import EMA
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.utils.lightning_internals import (
    is_accumulating,
    is_logging_step,
    is_validation_next,
    list_child_processes,
    log_step_metrics,
    set_batches_done,
    set_ddp_defaults,
    skip_signal_broadcast,
)

GONE = f"pytorch-lightning {version('pytorch-lightning')} has no {{}} any more: rewrite {{}}, which depends on it"


class Recorder(Callback):
    """Calls the functions at the end of every batch and keeps what they return."""

    def __init__(self) -> None:
        self.accumulating: list[bool] = []
        self.validation_next: list[bool] = []
        self.logging: list[bool] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.logging.append(is_logging_step(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.accumulating.append(is_accumulating(trainer))
        self.validation_next.append(is_validation_next(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(len(self.accumulating))


def fit(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **arguments: Any) -> Trainer:
    trainer = quiet_trainer(
        folder, callbacks=list(callbacks), **({"max_epochs": 1, "limit_train_batches": 5} | arguments)
    )
    trainer.fit(tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Five batches in three optimizer steps, with a validation after every second batch."""
    recorder = Recorder()
    settings = {"accumulate_grad_batches": 2, "limit_val_batches": 1, "val_check_interval": 2, "log_every_n_steps": 2}
    fit(tmp_path_factory.mktemp("recorded"), recorder, **settings)
    return recorder


def test_accumulation_ends_with_every_second_batch_and_with_the_epoch(recorded: Recorder) -> None:
    assert recorded.accumulating == [True, False, True, False, False], GONE.format(
        "_FitLoop._should_accumulate with its old meaning", "is_accumulating"
    )


def test_a_validation_is_announced_after_the_batches_that_it_follows(recorded: Recorder) -> None:
    announced = [number for number, due in enumerate(recorded.validation_next, start=1) if due]
    assert announced == recorded.validated == [2, 4], GONE.format(
        "_TrainingEpochLoop._should_check_val_fx with its old meaning", "is_validation_next"
    )


def test_every_second_step_is_a_logging_step(recorded: Recorder) -> None:
    assert recorded.logging == [False, False, True, True, False], GONE.format(
        "_LoggerConnector.should_update_logs with its old meaning", "is_logging_step"
    )


def test_metrics_of_a_step_reach_the_loggers_before_the_batch_ends(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            log_step_metrics(trainer)
            raise KeyboardInterrupt

    logger = CSVLogger(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, Interrupt(), logger=logger)
    assert "train/loss" in (Path(logger.log_dir) / "metrics.csv").read_text(), GONE.format(
        "_LoggerConnector.update_train_step_metrics with its old meaning", "log_step_metrics"
    )


@pytest.mark.parametrize(("over", "batches"), [(False, 4), (True, 0)], ids=["inside an epoch", "after an epoch"])
def test_a_run_resumes_after_the_batches_that_its_checkpoint_is_given(tmp_path: Path, over: bool, batches: int) -> None:
    """The checkpoint of step 3 is changed to have one batch behind it, unless its epoch is over."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(path)

    class Shift(Callback):
        def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            set_batches_done(checkpoint, 1)

    path, seen = tmp_path / "three.ckpt", Recorder()
    fit(tmp_path, Save(), limit_train_batches=3 if over else 5)
    fit(tmp_path, Shift(), seen, ckpt_path=path)
    assert len(seen.accumulating) == batches, GONE.format("batch_progress of the old format", "set_batches_done")


def test_the_first_rank_lists_the_processes_that_it_started(tmp_path: Path) -> None:
    assert list_child_processes(quiet_trainer(tmp_path).strategy) == []
    trainer = quiet_trainer(tmp_path, strategy="ddp")
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, _SubprocessScriptLauncher)
    assert launcher.procs == [], GONE.format("_SubprocessScriptLauncher.procs", "list_child_processes")
    assert list_child_processes(trainer.strategy) is launcher.procs


def test_training_batches_start_with_a_broadcast_that_can_be_skipped(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    loop = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor"), GONE.format(
        "_TrainingEpochLoop._broadcast_sigterm_tensor", "skip_signal_broadcast"
    )
    skip_signal_broadcast(trainer)
    assert loop._broadcast_sigterm_tensor() is None


@pytest.mark.parametrize(
    ("network", "given", "synchronised"),
    [(nn.Identity(), {}, False), (nn.BatchNorm2d(1), {}, None), (nn.Identity(), {"broadcast_buffers": True}, True)],
    ids=["constant buffers", "running statistics", "as the user asks"],
)
def test_ddp_gets_the_defaults_that_the_user_has_not_set(
    network: nn.Module, given: dict[str, Any], synchronised: bool | None, tmp_path: Path
) -> None:
    trainer = quiet_trainer(tmp_path, strategy=DDPStrategy(**given))
    module = LightningModule()
    module.network = network
    trainer.strategy.connect(module)
    set_ddp_defaults(trainer)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert hasattr(trainer.strategy, "_ddp_kwargs"), GONE.format("DDPStrategy._ddp_kwargs", "set_ddp_defaults")
    options = dict(trainer.strategy._ddp_kwargs)
    assert options.pop("gradient_as_bucket_view")
    assert list(options.values()) == ([] if synchronised is None else [synchronised])


def test_other_strategies_stay_as_they_are(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    before = dict(vars(trainer.strategy))
    set_ddp_defaults(trainer)
    assert vars(trainer.strategy) == before


def test_weight_averaging_has_what_the_moving_average_overrides() -> None:
    average = WeightAveraging()
    for name in ("_average_model", "_latest_update_step", "_swap_models"):
        assert hasattr(average, name), GONE.format(f"WeightAveraging.{name}", "callbacks.EMA")
    ema, model = EMA(), tiny_model()
    ema.setup(Trainer(logger=False, barebones=True), model, "fit")
    assert isinstance(ema._average_model, torch.optim.swa_utils.AveragedModel), GONE.format(
        "AveragedModel in WeightAveraging._average_model", "callbacks.EMA"
    )
