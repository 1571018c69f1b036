"""The learning rate's warm-up and decay in closed form, also of a run that is resumed to another length."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml
from torch import nn

from lightning_ddpm.models.learning_rate import WarmUp
from lightning_ddpm.models.optimizer import MatrixDecayAdamW
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.errors import UserError


def list_rates(n: int, **arguments: Any) -> list[float]:
    """Return the rates of the first n steps, whose highest is 2."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, rates = WarmUp(optimizer, **arguments), []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_rate_rises_linearly_and_stays() -> None:
    assert list_rates(6, steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert list_rates(2, steps=0) == [2.0, 2.0]


def test_the_rate_decays_to_the_end_of_the_run_and_no_further() -> None:
    assert list_rates(8, steps=2, decay="linear", length=6, lowest=0.5) == [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0]
    cosine = list_rates(8, steps=2, decay="cosine", length=6)
    expected = [1.0, 2.0, *(1 + math.cos(math.pi * k / 4) for k in range(4)), 0.0, 0.0]
    assert cosine == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "the warm-up's steps must be at least 0, got -1"),
        ({"decay": "cosin"}, "decay must be one of constant, linear, cosine, got 'cosin'"),
        ({"lowest": 1.5}, "lowest is a share of the learning rate in [0, 1], got 1.5"),
        (
            {"decay": "linear", "steps": 9, "length": 9},
            "a warm-up of 9 steps leaves none of the run's 9",
        ),
    ],
)
def test_arguments_without_a_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        list_rates(1, **arguments)
    assert message in str(error.value)


def test_a_decay_without_an_end_is_refused(command: Any, tmp_path: Path) -> None:
    config = tiny_digits(tmp_path / "run")
    config["model"]["init_args"]["lr_scheduler"] = make_warm_up("cosine")
    config["trainer"] |= {"max_steps": -1, "max_time": "00:00:01:00"}
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 2
    assert "a cosine decay needs to know the run's end; set trainer.max_steps, or its length" in err


def make_warm_up(decay: str) -> dict[str, Any]:
    """Return a config's learning-rate schedule with a warm-up of one step."""
    return {"class_path": "lightning_ddpm.models.learning_rate.WarmUp", "init_args": {"steps": 1, "decay": decay}}


def test_a_resumed_run_decays_to_its_new_end(command: Any, tmp_path: Path) -> None:
    config = tiny_digits(tmp_path / "run")
    config["model"]["init_args"] |= {"lr_scheduler": make_warm_up("linear")}
    config["model"]["init_args"]["optimizer"] = {
        "class_path": "lightning_ddpm.models.optimizer.MatrixDecayAdamW",
        "init_args": {"lr": 0.008, "weight_decay": 0.1},
    }
    rates = []
    for steps, resume in ((3, ()), (6, ("--ckpt_path", "last"))):
        path = write_yaml(tmp_path / "config.yaml", config)
        status, _, err = command("fit", "--config", path, "--trainer.max_steps", steps, *resume)
        assert status == 0, err
        content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        groups = content["optimizer_states"][0]["param_groups"]
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert groups[0]["lr"] == groups[1]["lr"]
        rates.append(groups[0]["lr"])
    assert rates == [0.0, 0.0], "of the step after the last one"
    assert content["lr_schedulers"][0]["last_epoch"] == 6


def test_a_schedule_that_ends_before_the_run_is_refused_and_can_be_lengthened(command: Any, tmp_path: Path) -> None:
    config = tiny_digits(tmp_path / "run")
    arguments = {"max_lr": 0.01, "total_steps": 3}
    cycle = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": arguments}
    config["model"]["init_args"] |= {"lr_scheduler": cycle}
    words = ("fit", "--config", write_yaml(tmp_path / "config.yaml", config), "--trainer.max_steps")
    status, _, err = command(*words, 5)
    assert status == 2
    assert "model.lr_scheduler has total_steps 3, and the run has 5 steps: set its total_steps to 5" in err
    assert command(*words, 3)[0] == 0
    status, _, err = command(*words, 5, "--model.lr_scheduler.total_steps", 5, "--ckpt_path", "last")
    assert status == 0, err


def test_a_checkpoint_has_the_next_rate_of_the_present_length() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    old = WarmUp(optimizer, steps=0, decay="linear", length=2)
    for _ in range(2):
        optimizer.step()
        old.step()
    assert optimizer.param_groups[0]["lr"] == 0.0
    new = WarmUp(optimizer, steps=0, decay="linear", length=8)
    new.load_state_dict(old.state_dict())
    assert (new.last_epoch, optimizer.param_groups[0]["lr"]) == (2, 2.0 * 6 / 8)


def test_biases_and_norms_are_not_decayed() -> None:
    network = UNet(1, 8, width=8, multipliers=(1,), attention=(8,), groups=4)
    optimizer = MatrixDecayAdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    before = {name: each.detach().clone() for name, each in network.named_parameters()}
    for each in network.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    for name, each in network.named_parameters():
        factor = 0.95 if name.endswith("weight") and "norm" not in name.split(".")[-2] else 1.0
        torch.testing.assert_close(each.detach(), factor * before[name], msg=name)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
