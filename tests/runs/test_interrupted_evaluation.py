"""A signal in the middle of an evaluation during training: the run stops at once and evaluates when it is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY, TWO, callback, ddpm, tiny_digits, write_yaml
from helpers.run_results import assert_equal, curves, trained


def fit(
    folder: Path, who: str, when: dict[str, int | None], *options: object, rank: int = 0, signal: bool = True
) -> Any:
    """Run six steps in epochs of three, with evaluations and memorisation, the signal in one of both."""
    config = tiny_digits(folder / "run")
    config["trainer"].update(max_steps=6, val_check_interval=3, limit_val_batches=1)
    callback(config, "Checkpoints").update(every_n_steps=100)
    for name in ("Evaluation", "Memorisation"):
        callback(config, name).update({"n": 40, "batch_size": 8, "every_n_steps": None, **when})
    marker = folder / "sent"
    spy = {"class_path": "helpers.run_spies.InterruptedDDIM", "init_args": {"steps": 2, "marker": str(marker)}}
    spy["init_args"]["rank"] = rank
    callback(config, who)["sampler"] = spy
    config["data"].update(source={"class_path": "helpers.run_spies.NumberedDigits"}, batch_size=16)
    config["data"]["source"]["init_args"] = {"n": 48}
    if not signal:
        folder.mkdir()
        marker.touch()
    file = write_yaml(folder / "config.yaml", config)
    return ddpm("fit", "--config", file, *options, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "when", "rank", "options"),
    [
        ("Memorisation", {"every_n_epochs": 1}, 0, ()),
        ("Evaluation", {"every_n_steps": 2}, 1, (*TWO, "--data.batch_size", 8)),
    ],
)
def test_the_run_stops_at_once_and_evaluates_the_same_weights_when_it_is_resumed(
    tmp_path: Path, who: str, when: dict[str, int | None], rank: int, options: tuple[object, ...]
) -> None:
    whole = fit(tmp_path / "whole", who, when, *options, rank=rank, signal=False)
    assert whole.returncode == 0, whole.stderr
    stopped = fit(tmp_path / "stopped", who, when, *options, rank=rank)
    assert stopped.returncode == 0, stopped.stderr
    step = when.get("every_n_steps") or 3
    assert f"SIGTERM: stopped after step {step}; resume with --ckpt_path last" in stopped.stdout
    measured = "val/fd_digits" if who == "Evaluation" else "val/memorisation_digits"
    assert f"step {step}: {measured}" not in stopped.stdout
    resumed = fit(tmp_path / "stopped", who, when, *options, "--ckpt_path", "last", rank=rank)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count(f"step {step}: {measured}") == 1
    runs = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
    assert_equal(*(trained(run) for run in runs))
    assert curves(runs[0]) == curves(runs[1])
    best = [torch.load(run / "best.ckpt", weights_only=True) for run in runs]
    assert best[0]["global_step"] == best[1]["global_step"]
    assert_equal(best[0]["state_dict"], best[1]["state_dict"])
    assert best[0]["ImageDataModule"] == best[1]["ImageDataModule"]
