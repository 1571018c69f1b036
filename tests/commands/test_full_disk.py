"""A full disk by the command line: training survives it, and other commands end in one sentence."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY, callback, ddpm, run, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence
from helpers.full_disk import limit_files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DIGITS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


def test_training_survives_a_disk_that_is_full_for_a_while(command: Any, tmp_path: Path) -> None:
    config = tiny_digits(tmp_path / "run")
    callbacks = config["trainer"]["callbacks"]
    config["trainer"].update(max_steps=4, logger=[{"class_path": "TensorBoardLogger"}, {"class_path": "CSVLogger"}])
    for name in ("Evaluation", "Memorisation", "SampleGrid", "Checkpoints"):
        callback(config, name).update(every_n_steps=1)
    full = {"class_path": "helpers.full_disk.FullFrom", "init_args": {"first": 1, "until": 2}}
    config["trainer"]["callbacks"] = [full, *callbacks]
    status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    for what in (rf"TensorBoard's curves in {tmp_path}/run", rf"{tmp_path}/run/metrics.csv", "images in .*/samples"):
        assert len(re.findall(rf"cannot write {what} \(\[Errno 27\] File too large\); training continues", out)) == 1
    assert "cannot write" in out
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4
    events = EventAccumulator(str(tmp_path / "run"), {"scalars": 0, "images": 0}).Reload()
    for name in ("train/loss", "val/fd_digits", "val/memorisation_digits"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("samples")] == [1, 2, 3, 4]
    grids = sorted(path.name for path in (tmp_path / "run" / "samples").glob("step*"))
    assert grids == [f"step-{step:07d}.png" for step in (1, 3, 4)]
    assert not list((tmp_path / "run").rglob(".*"))


def sample(folder: Path) -> tuple[object, ...]:
    return ("sample", "--ckpt", DIGITS, "--n", 2, "--steps", 2, "--out", folder / "out")


def export(folder: Path) -> tuple[object, ...]:
    return ("export", "--ckpt", DIGITS, "--format", "diffusers", "--out", folder / "out")


def evaluate(folder: Path) -> tuple[object, ...]:
    source = folder / "images"
    return (
        *("evaluate", "--images", source, "--reference", source, "--metrics", "fid", "--n", 2),
        *("--extractor", "DigitsFeatures", "--out", folder / "out.json"),
    )


def save_statistics(folder: Path) -> tuple[object, ...]:
    return (*evaluate(folder)[:-2], "--save_stats", folder / "out.npz")


def restore(folder: Path) -> tuple[object, ...]:
    task = ("--task", "denoise", "--sigma", 0.2, "--steps", 2)
    return ("restore", *task, "--ckpt", DIGITS, "--images", folder / "images", "--out", folder / "out")


def convert(folder: Path) -> tuple[object, ...]:
    return ("import", "--folder", folder / "pipeline", "--out", folder / "out.ckpt")


@pytest.mark.parametrize("write", [sample, export, evaluate, save_statistics, restore, convert])
def test_other_commands_end_in_one_sentence(
    command: Any, tmp_path: Path, write: Callable[[Path], tuple[object, ...]]
) -> None:
    status, _, err = command("sample", "--ckpt", DIGITS, "--n", 2, "--steps", 2, "--out", tmp_path / "images")
    assert status == 0, err
    for extra in ("grid.png", "set.json"):
        (tmp_path / "images" / extra).unlink()
    if write is convert:
        status, _, err = command("export", "--ckpt", DIGITS, "--format", "diffusers", "--out", tmp_path / "pipeline")
        assert status == 0, err
    with limit_files(10):
        status, _, err = command(*write(tmp_path))
    assert status == 2
    message = get_error_sentence(status, err)
    assert re.fullmatch(
        r"error: the disk cannot be written \(File too large; /.* was being written\); "
        "make room, and run the same command again",
        message,
    )
    marks = [".unfinished-export"] if write is export else []  # with which the same command writes it again
    assert [path.name for path in tmp_path.rglob(".*")] == marks


@pytest.mark.slow
def test_output_to_a_full_disk_fails_except_in_fit(tmp_path: Path) -> None:
    config = tiny_digits(tmp_path / "run")
    config["trainer"].update(callbacks=config["trainer"]["callbacks"][-1:], max_steps=1)
    callback(config, "Checkpoints").update(monitor=None)
    fit = [sys.executable, "-m", "lightning_ddpm", "fit", "--config", write_yaml(tmp_path / "config.yaml", config)]
    ended = run("sh", "-c", '"$@" > /dev/full', "sh", *fit)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "run" / "last.ckpt").is_file()
    words = [*fit[:3], *sample(tmp_path)]
    ended = run("sh", "-c", '"$@" > /dev/full', "sh", *words)
    assert ended.returncode == 2
    assert "the output cannot be written" in get_error_sentence(ended.returncode, ended.stderr)
    assert ddpm("--help").returncode == 0
