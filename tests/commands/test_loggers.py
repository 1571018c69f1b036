"""Loggers by the command line: where their files are, which steps they hold after a resume, and which get images."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CSV, TENSORBOARD, WANDB = (f"pytorch_lightning.loggers.{each}Logger" for each in ("CSV", "TensorBoard", "Wandb"))


def short_run(folder: Path, *loggers: Any) -> Path:
    """Return the config of four steps with a sample grid and checkpoints, and with these loggers."""
    config = tiny_digits(folder / "run")
    kept = "EMA", "SampleGrid", "Checkpoints"
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [each for each in callbacks if each["class_path"].rpartition(".")[2] in kept]
    config["trainer"]["callbacks"][-1]["init_args"]["monitor"] = None
    config["trainer"].update(limit_val_batches=1)
    if loggers:
        config["trainer"]["logger"] = [{"class_path": each} if isinstance(each, str) else each for each in loggers]
    return write_yaml(folder / "config.yaml", config)


def read_table(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves in a metrics.csv, with steps counted from 0."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves that TensorBoard shows, except the training speed."""
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    shown = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in shown.items() if "per_second" not in tag}


def count_images(folder: Path) -> list[int]:
    """Return the steps of the sample grids that TensorBoard shows."""
    return [each.step for each in EventAccumulator(str(folder), {"images": 0}).Reload().Images("samples")]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with TensorBoard and a table, both named without a folder; stop after step 2 and resume. Return the run."""
    from lightning_ddpm.commands.main import main

    folder = tmp_path_factory.mktemp("logged")
    config = short_run(folder, TENSORBOARD, CSV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert main(["fit", "--config", str(config)]) == 0
        shutil.copytree(folder / "run", folder / "whole")
        # As a process leaves it that is killed after step 4, with its last checkpoint at step 2.
        shutil.copy(folder / "run" / "last-previous.ckpt", folder / "run" / "last.ckpt")
        with (folder / "run" / "metrics.csv").open("a") as file:
            file.write("0.0,3,0.2")
        assert main(["fit", "--config", str(config), "--ckpt_path", "last"]) == 0
    return folder


def test_every_logger_writes_into_the_run_folder_beside_its_config(logged: Path) -> None:
    names = {path.name for path in (logged / "whole").iterdir()}
    assert {"config.yaml", "metrics.csv", "last.ckpt", "samples"} <= names
    assert not {"lightning_logs", "hparams.yaml"} & names
    assert len([name for name in names if "tfevents" in name]) == 1


def test_a_resumed_run_continues_its_files_without_repeating_a_step(logged: Path) -> None:
    table, whole = (read_table(logged / name / "metrics.csv") for name in ("run", "whole"))
    assert [step for step, _ in table["train/loss"]] == [0, 1, 2, 3]
    for name in whole:
        if "per_second" not in name and "loss_t" not in name:
            assert table[name] == whole[name]
            shown = read_curves(logged / "run")[name]
            assert [(step - 1, pytest.approx(value, rel=1e-6)) for step, value in shown] == table[name]
    assert count_images(logged / "run") == [2, 4]


def test_the_saved_config_names_no_folder_and_runs_again_elsewhere(logged: Path, command: Any, tmp_path: Path) -> None:
    config = logged / "whole" / "config.yaml"
    status, _, err = command(
        "fit", "--config", config, "--trainer.default_root_dir", tmp_path, "--trainer.max_steps", 1
    )
    assert status == 0, err
    assert [step for step, _ in read_table(tmp_path / "metrics.csv")["train/loss"]] == [0]
    assert [step for step, _ in read_curves(tmp_path)["train/loss"]] == [1]


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_other_commands_leave_the_curves_of_the_run_as_they_are(
    logged: Path, command: Any, tmp_path: Path, name: str
) -> None:
    shutil.copytree(logged / "whole", tmp_path / "run")
    before, table = read_curves(tmp_path / "run"), (tmp_path / "run" / "metrics.csv").read_bytes()
    checkpoint = tmp_path / "run" / "last.ckpt"
    options = ("--trainer.default_root_dir", tmp_path / "run", "--data.predict_images", 2)
    status, _, err = command(name, "--config", tmp_path / "run" / "config.yaml", "--ckpt_path", checkpoint, *options)
    assert status == 0, err
    assert read_curves(tmp_path / "run") == before
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == table
    if name != "predict":
        stage = {"validate": "val", "test": "test"}[name]
        assert [step for step, _ in read_curves(tmp_path / "run" / name)[f"{stage}/loss"]] == [4]


def test_a_logger_with_a_folder_of_its_own_keeps_it(command: Any, tmp_path: Path) -> None:
    given = {"class_path": CSV, "init_args": {"save_dir": str(tmp_path / "tables"), "name": "mine", "version": 3}}
    status, _, err = command("fit", "--config", short_run(tmp_path, given), "--trainer.max_steps", 1)
    assert status == 0, err
    assert (tmp_path / "tables" / "mine" / "version_3" / "metrics.csv").is_file()
    assert (tmp_path / "run" / "config.yaml").is_file()
    options = ("--n", 2, "--steps", 2, "--extractor", "DigitsFeatures")
    status, out, err = command("evaluate", "--ckpt", tmp_path / "run" / "last.ckpt", *options)
    assert status == 0, err
    assert "reference: statistics of 1618 images" in out  # of the run's own config


def test_a_run_without_loggers_can_be_resumed_with_and_without_one(command: Any, tmp_path: Path) -> None:
    config = short_run(tmp_path)
    for step, logger in enumerate(("false", "CSVLogger", "false"), 1):
        resume = ("--ckpt_path", "last") if step > 1 else ()
        options = ("--trainer.logger", logger, "--trainer.max_steps", step, *resume)
        status, _, err = command("fit", "--config", config, *options)
        assert status == 0, err
    assert [step for step, _ in read_table(tmp_path / "run" / "metrics.csv")["train/loss"]] == [1]  # counted from 0
    assert not list((tmp_path / "run").glob("events.*"))
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_wandb_continues_its_run_in_the_run_folder_and_gets_the_images(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = short_run(tmp_path)
    options = ("--config", config, "--trainer.logger", "WandbLogger", "--trainer.logger.project", "digits")
    ids = []
    for more in (("--trainer.max_steps", 2), ("--ckpt_path", "last")):
        status, _, err = command("fit", *options, *more)
        assert status == 0, err
        ids.append(wandb.run.id)
        wandb.finish()
    assert ids[0] == ids[1]
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert all(run.name.endswith(ids[0]) for run in runs)
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))) == 2
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert not (tmp_path / "wandb").exists()
