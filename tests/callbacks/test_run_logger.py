"""RunLogger and LearningRate: which curves TensorBoard shows, and at which steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fits import events, fit, tensorboard
from helpers.tiny import tiny_model
from pytorch_lightning.loggers import CSVLogger

from lightning_ddpm.callbacks import LearningRate


def warm_up(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)


def test_the_learning_rate_of_each_logged_step_is_a_curve_of_train(tmp_path: Path) -> None:
    model = tiny_model(lr_scheduler=warm_up)
    fit(tmp_path, [LearningRate()], model, logger=tensorboard(tmp_path), log_every_n_steps=2)
    found = [(event.step, event.value) for event in events(tmp_path).Scalars("train/lr")]
    assert found == [(2, pytest.approx(0.005)), (4, pytest.approx(0.01))]


def test_parameter_groups_have_curves_of_their_own(tmp_path: Path) -> None:
    def two_groups(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.Adam([{"params": [first], "lr": 0.5}, {"params": rest}], lr=0.25)

    fit(tmp_path, [LearningRate()], tiny_model(optimizer=two_groups), logger=tensorboard(tmp_path), max_steps=1)
    curves = events(tmp_path)
    assert [curves.Scalars(f"train/lr_group{i}")[0].value for i in (1, 2)] == [0.5, 0.25]
    assert "train/lr" not in curves.Tags()["scalars"]


def test_the_epoch_is_no_curve_of_tensorboard_and_stays_in_other_loggers(tmp_path: Path) -> None:
    table = CSVLogger(tmp_path)
    fit(tmp_path, [LearningRate()], logger=[tensorboard(tmp_path), table])
    table.save()
    folders = {tag.partition("/")[0] for tag in events(tmp_path).Tags()["scalars"]}
    assert folders == {"train"}
    assert "epoch" in (Path(table.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
