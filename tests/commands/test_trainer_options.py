"""The Trainer's options: what cannot work is refused before the first step; switches for debugging work."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence, read_losses
from jsonargparse import Namespace

from lightning_ddpm.commands.trainer_options import check_trainer_options, explain_services
from lightning_ddpm.data.sharding import RepeatedShard
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

ACCUMULATED = ("--trainer.accumulate_grad_batches", "2")


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--trainer.accelerator", "gpu"), ("--trainer.accelerator gpu cannot be used here", "change or remove it")),
        (("--trainer.devices", "0"), ("--trainer.devices 0 cannot be used here",)),
        (("--trainer.strategy", "no_such"), ("--trainer.strategy no_such cannot be used here", "ddp")),
        (("--trainer.gradient_clip_algorithm", "no_such"), ("--trainer.gradient_clip_algorithm no_such", "'norm'")),
        (("--trainer.max_time", "long"), ("--trainer.max_time long cannot be used here", "DD:HH:MM:SS")),
        (("--trainer.precision", "8"), ("--trainer.precision expects", "got '8'")),
        (
            ("--trainer.enable_checkpointing", "false"),
            ("contradicts the callback lightning_ddpm.callbacks.Checkpoints",),
        ),
        (("--trainer.val_check_interval", "0.5"), ("is a share of an epoch", "--trainer.check_val_every_n_epoch 1")),
        (
            ("--trainer.val_check_interval", "103", "--trainer.check_val_every_n_epoch", "1"),
            ("--trainer.val_check_interval 103 counts within an epoch, which has 102 steps",),
        ),
        (
            (*ACCUMULATED, "--trainer.val_check_interval", "52", "--trainer.check_val_every_n_epoch", "1"),
            ("--trainer.val_check_interval 52 counts within an epoch, which has 51 steps",),
        ),
        (("--seed_everything", "-1"), ("--seed_everything must lie in [0, 4294967295], got -1",)),
        (
            ("--trainer.limit_train_batches", "0.001"),
            ("limit_train_batches 0.001 of the 102 batches is less than one",),
        ),
        (("--trainer.overfit_batches", "0.001"), ("--trainer.overfit_batches 0.001 of the 102 batches",)),
        (("--model.optimizer.lr", "-0.1"), ("model.optimizer cannot be built: Invalid learning rate: -0.1",)),
        (("--model.optimizer.lr", "nan"), ("--model.optimizer.lr expects float", "got 'nan'")),
        (("--model.lr_scheduler.start_factor", "0"), ("model.lr_scheduler cannot be built",)),
        (("--data.num_workers", "-1"), ("data.num_workers must be at least 0, got -1",)),
        (("--data.predict_images", "0"), ("data.predict_images must be at least 1, got 0",)),
        (("--trainer.logger", "CometLogger"), ("CometLogger cannot be used here", "comet-ml")),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_the_first_step(options, messages, refused) -> None:
    message = refused(None, *options)
    assert all(each in message for each in messages), message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 0}, "--trainer.max_steps must be at least 1, got 0; -1 is no limit"),
        ({"strategy": "fsdp"}, "--trainer.strategy fsdp splits the weights over the devices, .*; use ddp"),
        ({"strategy": "deepspeed_stage_2_offload"}, "deepspeed_stage_2_offload splits the weights"),
        (
            {"strategy": Namespace(class_path="pytorch_lightning.strategies.ModelParallelStrategy")},
            "ModelParallelStrategy splits the weights",
        ),
        ({"max_steps": -2}, "--trainer.max_steps must be at least 1, got -2"),
        ({"max_epochs": 0}, "--trainer.max_epochs must be at least 1"),
        ({"num_nodes": 0}, "--trainer.num_nodes must be at least 1, got 0"),
        ({"accumulate_grad_batches": 0}, "--trainer.accumulate_grad_batches must be at least 1, got 0"),
        (
            {"log_every_n_steps": 0},
            "--trainer.log_every_n_steps must be at least 1, got 0; --trainer.logger false turns",
        ),
        ({"check_val_every_n_epoch": 0}, "--trainer.check_val_every_n_epoch must be at least 1"),
        ({"reload_dataloaders_every_n_epochs": -1}, "must be at least 0, got -1; 0 is never"),
        (
            {"gradient_clip_val": -1.0},
            "--trainer.gradient_clip_val must be at least 0, got -1.0; null turns clipping off",
        ),
        ({"gradient_clip_val": float("nan")}, "--trainer.gradient_clip_val must be at least 0, got nan"),
        ({"fast_dev_run": -1}, "--trainer.fast_dev_run must be at least 0"),
        ({"num_sanity_val_steps": -2}, "--trainer.num_sanity_val_steps must be at least 0, got -2"),
        ({"limit_train_batches": 0}, "--trainer.limit_train_batches 0 leaves nothing to train on"),
        ({"limit_train_batches": 1.5}, r"a share of them in \[0.0, 1.0\], got 1.5"),
        ({"limit_val_batches": -1}, "--trainer.limit_val_batches is a number of batches"),
        ({"overfit_batches": -1}, "--trainer.overfit_batches is a number of batches"),
        ({"val_check_interval": 0}, "must be more than 0, got 0; --trainer.limit_val_batches 0 turns validation off"),
        ({"val_check_interval": 1.5}, "a share of an epoch in \\(0, 1\\], or a whole number, got 1.5"),
        ({"profiler": "no_such"}, "there is no --trainer.profiler no_such; there are simple"),
        ({"barebones": True}, "--trainer.barebones true turns off checkpoints"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_the_number_to_give(values, message) -> None:
    with pytest.raises(UserError, match=message):
        check_trainer_options(Namespace(**values))


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_is_refused_without_a_batch_to_work_on(command) -> None:
    name = {"validate": "val"}.get(command, command)
    with pytest.raises(UserError, match=f"--trainer.limit_{name}_batches 0 leaves nothing to"):
        check_trainer_options(Namespace(**{f"limit_{name}_batches": 0}), command)
    check_trainer_options(Namespace(limit_train_batches=0), command)


def test_special_values_are_accepted() -> None:
    check_trainer_options(Namespace(max_steps=-1, max_epochs=-1, num_sanity_val_steps=-1, limit_val_batches=0))
    check_trainer_options(Namespace(val_check_interval=0.5, check_val_every_n_epoch=1, fast_dev_run=True))
    check_trainer_options(Namespace(callbacks=None, enable_checkpointing=False, gradient_clip_val=None))


def test_a_service_without_a_login_is_a_sentence_and_other_exceptions_stay() -> None:
    usage_error = type("UsageError", (Exception,), {"__module__": "wandb.errors"})
    with pytest.raises(UserError, match=r"wandb cannot be used here \(No API key configured\)"), explain_services():
        raise usage_error("No API key configured.")
    with pytest.raises(KeyError), explain_services():
        raise KeyError


@pytest.mark.parametrize("options", [("--accelerator", "gpu"), ("--strategy", "no_such"), ("--precision", "8")])
def test_other_commands_refuse_the_same_devices_in_their_own_words(options, digits_run, command, tmp_path) -> None:
    out = tmp_path / "out"
    status, _, err = command("sample", "--ckpt", digits_run.folder / "last.ckpt", "--out", out, *options)
    message = get_error_sentence(status, err)
    assert f"{' '.join(options)} cannot be used here" in message
    assert "--trainer." not in message


@pytest.fixture
def train(command, tmp_path):
    """Runs the shrunk digits config with EMA and Checkpoints only; returns what it printed, and its folder."""

    def fit(*options) -> tuple[str, Path]:
        config = tiny_digits(tmp_path / "run")
        callbacks = config["trainer"]["callbacks"]
        config["trainer"]["callbacks"] = [each for each in callbacks if each["class_path"].endswith((".EMA", "points"))]
        config["trainer"]["callbacks"][-1]["init_args"].pop("monitor")
        status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *options)
        assert status == 0, err
        return out, tmp_path / "run"

    return fit


def test_overfit_batches_trains_on_the_same_images_in_every_epoch(train, command, tmp_path) -> None:
    out, run = train("--trainer.overfit_batches", "2", "--trainer.max_steps", "3")
    assert "2 steps per epoch" in out
    status, out, err = command(
        "fit", "--config", run / "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6"
    )
    assert status == 0, err
    assert "resuming after step 3" in out
    assert [step for step, _ in read_losses(run)] == [1, 2, 3, 4, 5, 6]


def test_the_order_of_the_first_epoch_is_repeated_on_every_rank_and_resumed_within_it() -> None:
    ranks = [RepeatedShard(20, 0, Ranks(rank, 2), 2) for rank in range(2)]
    first = [list(each) for each in ranks]
    assert sorted([*first[0], *first[1]]) == list(range(20))
    for each in ranks:
        each.set_epoch(3)
    assert [list(each) for each in ranks] == first
    resumed = RepeatedShard(20, 0, Ranks(1, 2), 2, 3, 4)
    assert list(resumed) == first[1][2:]
    resumed.set_epoch(4)
    assert list(resumed) == first[1]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        (("--trainer.limit_train_batches", "2"), "2 steps per epoch"),
        (("--trainer.limit_val_batches", "0"), "step 4 of 4"),
        (("--trainer.fast_dev_run", "true"), "step 1 of 1"),
        (("--trainer.detect_anomaly", "true"), "step 4 of 4"),
        (("--trainer.val_check_interval", "00:01:00:00"), "step 4 of 4"),
        ((*ACCUMULATED, "--trainer.val_check_interval", "00:01:00:00"), "step 4 of 4"),
        (("--trainer.profiler", "simple"), "step 4 of 4"),
    ],
)
def test_the_switches_for_debugging_work(options, printed, train) -> None:
    out, run = train(*options)
    assert printed in out
    assert (run / "last.ckpt").is_file() is ("fast_dev_run" not in options[0])


REVERSED = """
import sys
from typing import Optional, Union

class Reverser:
    def find_spec(self, name, path=None, target=None):
        Optional[Union[float, int]]  # typing now returns it for Optional[Union[int, float]], too

sys.meta_path.insert(0, Reverser())
from lightning_ddpm.commands.main import main
main(["fit", "--config", sys.argv[1], "--trainer.limit_val_batches", "1", "--print_config"])
"""


def test_one_batch_is_one_batch_though_another_library_has_reversed_the_types(tmp_path):
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    ran = subprocess.run([sys.executable, "-c", REVERSED, config], capture_output=True, text=True, check=True)
    assert "\n  limit_val_batches: 1\n" in ran.stdout, "it is a share of 1.0: all batches"
