"""``fit``, ``validate``, ``test`` and ``predict`` from their command lines."""

import re
import shutil

import pytest
import torch
from helpers.command_line import read_yaml, tiny_digits, write_yaml
from helpers.command_outputs import read_files, read_images, read_losses, run_on_terminal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ddpm.models.checkpoint import load
from lightning_ddpm.models.ddpm import DDPM


def test_fit_writes_one_folder_with_checkpoints_config_events_and_samples(digits_run):
    folder = digits_run.folder
    assert {"last.ckpt", "best.ckpt", "config.yaml"} <= {path.name for path in folder.iterdir()}
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "memorisation-0000004-distances.png",
        "memorisation-0000004.png",
        "step-0000002.png",
        "step-0000004.png",
    ]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    events = EventAccumulator(str(folder)).Reload()
    assert [step for step, _ in read_losses(folder)] == [1, 2, 3, 4]
    distances = {event.step: event.value for event in events.Scalars("val/fd_digits")}
    assert sorted(distances) == [2, 4]
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(distances, key=distances.get)


def test_fit_reports_its_folder_device_data_and_work_at_the_start(digits_run):
    out = digits_run.out
    parameters = sum(p.numel() for p in load(digits_run.folder / "last.ckpt", DDPM).parameters())
    for part in (
        str(digits_run.folder),
        "1 x cpu, 1 thread",
        "precision 32-true",
        "1618 of 1x8x8, 179 held out",
        f"{parameters:,} parameters",
        "4 steps of 16 images, 102 steps per epoch",
        "65 images x 2 network evaluations",
    ):
        assert part in out


def test_fit_prints_plain_lines_and_no_bar_in_a_log_file(digits_run):
    assert re.search(r"step 4 of 4: train/loss [\d.]+, val/loss [\d.]+, val/fd_digits [\d.]+; ", digits_run.out)
    for sign in ("\r", "\x1b", "━", "█"):
        assert sign not in digits_run.out + digits_run.err


def test_fit_on_a_terminal_shows_a_bar_with_the_loss(tmp_path):
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    status, shown = run_on_terminal("fit", "--config", config)
    assert status == 0, shown
    assert "━" in shown
    assert "4/4" in shown
    assert "train/loss" in shown


def test_the_saved_config_is_complete_and_runs_again_with_the_same_losses(digits_run, command, tmp_path):
    saved = read_yaml(digits_run.folder / "config.yaml")
    assert saved["model"]["init_args"]["network"]["init_args"]["channels"] == 1
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["betas"] == [0.9, 0.999]
    config = digits_run.folder / "config.yaml"
    status, _, err = command("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "again")
    assert status == 0, err
    first, again = read_losses(digits_run.folder), read_losses(tmp_path / "again")
    assert [step for step, _ in first] == [step for step, _ in again]
    assert [value for _, value in again] == pytest.approx([value for _, value in first], rel=1e-5)


def test_a_callback_alone_needs_no_list(command, tmp_path):
    config = tiny_digits(tmp_path / "run")
    config["trainer"]["callbacks"] = {"class_path": "lightning_ddpm.callbacks.EMA", "init_args": {"decay": 0.5}}
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config), "--trainer.max_steps", 1)
    assert status == 0, err


def test_fit_refuses_a_folder_that_holds_a_run_and_overwrites_nothing(digits_run, command):
    before = read_files(digits_run.folder)
    status, _, err = command("fit", "--config", digits_run.folder / "config.yaml")
    assert status == 2
    assert err.startswith("error: ")
    assert "--ckpt_path last" in err
    assert read_files(digits_run.folder) == before


def test_fit_resumes_from_the_last_checkpoint(digits_run, command, tmp_path):
    shutil.copytree(digits_run.folder, tmp_path / "run")
    config, root = tmp_path / "run" / "config.yaml", tmp_path / "run"
    options = ("--trainer.default_root_dir", root, "--trainer.max_steps", "6", "--ckpt_path", "last")
    status, out, err = command("fit", "--config", config, *options)
    assert status == 0, err
    assert f"resuming after step 4 from {root / 'last.ckpt'}" in out
    assert "changed: trainer.max_steps was 4, is 6" in out
    assert "step 6 of 6" in out
    assert [step for step, _ in read_losses(root)] == [1, 2, 3, 4, 5, 6]
    assert torch.load(root / "last.ckpt", weights_only=True)["global_step"] == 6
    before = read_files(digits_run.folder / "samples")
    now = read_files(root / "samples")
    added = {"step-0000006.png", "memorisation-0000006.png", "memorisation-0000006-distances.png"}
    assert {path.name for path in set(now) - set(before)} == added
    assert {name: now[name] for name in before} == before


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_validate_test_and_predict_read_a_checkpoint(digits_run, command, tmp_path):
    config, weights = digits_run.folder / "config.yaml", digits_run.folder / "last.ckpt"
    options = ("--config", config, "--ckpt_path", weights, "--trainer.default_root_dir", tmp_path)
    before = read_files(digits_run.folder)
    for name in ("validate", "test"):
        status, out, err = command(name, *options)
        assert status == 0, err
        stage = "val" if name == "validate" else "test"
        assert f"{stage}/loss" in out
        assert f"{stage}/fd_digits" in out
        assert f"{name}: the weights after step 4 from {weights}" in out
    status, out, err = command("predict", *options, "--data.predict_images", "5", "--data.batch_size", "2")
    assert status == 0, err
    predicted = tmp_path / "predictions"
    assert f"wrote the images in {predicted}" in out
    assert sorted(path.name for path in predicted.iterdir()) == [f"{index:06d}.png" for index in range(5)]
    status, _, err = command(
        "sample", "--ckpt", weights, "--n", "5", "--batch_size", "2", "--out", tmp_path / "sampled"
    )
    assert status == 0, err
    assert (read_images(predicted, 5) == read_images(tmp_path / "sampled", 5)).all()
    assert read_files(digits_run.folder) == before


def test_validation_of_a_checkpoint_uses_the_averaged_weights(digits_run, command, tmp_path):
    config, weights = digits_run.folder / "config.yaml", digits_run.folder / "last.ckpt"
    options = ("--config", config, "--ckpt_path", weights, "--trainer.default_root_dir", tmp_path)
    status, out, err = command("validate", *options)
    assert status == 0, err
    events = EventAccumulator(str(digits_run.folder)).Reload()
    at_the_end = events.Scalars("val/fd_digits")[-1].value
    assert f"val/fd_digits {at_the_end:.4g} " in out


def test_a_run_without_a_usable_cache_goes_on_and_reports_it_once(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("lightning_ddpm.utils.cache._REPORTED", set())
    status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run")))
    assert status == 0, err
    assert out.count("going on without the cache") == 1
    assert "val/fd_digits" in out
