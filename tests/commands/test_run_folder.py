"""The folder of a run: nothing in it is overwritten, and one process at a time trains there."""

import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers.command_line import REPOSITORY, callback, read_yaml, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence, read_files, read_losses
from helpers.full_disk import limit_files

from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.locks import lock_folder

WEIGHTS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


@pytest.fixture
def fast_config(tmp_path):
    """Writes the tiny config with checkpoints alone, for a run in a folder; returns its path."""

    def write(folder, **trainer):
        config = tiny_digits(folder)
        config["trainer"]["callbacks"] = [each for each in config["trainer"]["callbacks"] if "Checkp" in str(each)]
        callback(config, "Checkpoints").pop("monitor")
        config["trainer"].update({"limit_val_batches": 0} | trainer)
        if folder is None:
            del config["trainer"]["default_root_dir"]
        return write_yaml(tmp_path / "config.yaml", config)

    return write


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Sets the home folder and the current one to folders of the test, and returns the first."""
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_every_command_finds_a_run_by_its_path_from_the_home_folder(fast_config, command, home, tmp_path):
    config = fast_config("~/run/")
    status, out, err = command("fit", "--config", config)
    assert status == 0, err
    assert f"run: {home / 'run'} " in out
    before = read_files(home / "run")
    message = get_error_sentence(*command("fit", "--config", config, "--trainer.default_root_dir", "~/x/../run")[::2])
    assert f"{home / 'run'} already holds a run" in message
    assert read_files(home / "run") == before
    status, out, err = command("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "5")
    assert status == 0, err
    assert f"resuming after step 4 from {home / 'run' / 'last.ckpt'}" in out
    status, out, err = command("sample", "--ckpt", "~/run/last.ckpt", "--n", "2", "--out", "~/run/../samples")
    assert status == 0, err
    assert (home / "samples" / "grid.png").is_file()
    options = ("--extractor", "DigitsFeatures", "--save_stats", "~/stats.npz", "--out", "~/result.json")
    status, out, err = command("evaluate", "--images", "~/samples", *options)
    assert status == 0, err
    assert {"result.json", "stats.npz"} <= {path.name for path in home.iterdir()}
    validate = ("validate", "--config", "~/run/config.yaml", "--trainer.limit_val_batches", "1")
    status, out, err = command(*validate, "--ckpt_path", "~/run/last.ckpt")
    assert status == 0, err
    assert list((tmp_path / "here").iterdir()) == []


def test_the_folder_is_the_same_for_all_commands_where_none_is_given(fast_config, command, home, tmp_path):
    config = fast_config(None)
    status, _, err = command("fit", "--config", config)
    assert status == 0, err
    message = get_error_sentence(*command("fit", "--config", config)[::2])
    assert "checkpoints/run already holds a run: there is checkpoints/run/last.ckpt" in message
    status, _, err = command("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "5")
    assert status == 0, err


def test_a_url_is_refused_as_a_folder(fast_config, command, tmp_path):
    status, _, err = command("fit", "--config", fast_config(f"file://{tmp_path}/run"))
    assert "is a URL, and only local paths are read and written" in get_error_sentence(status, err)
    status, _, err = command("sample", "--ckpt", "s3://bucket/last.ckpt", "--out", tmp_path / "samples")
    assert "s3://bucket/last.ckpt is a URL" in get_error_sentence(status, err)


@pytest.mark.parametrize(
    "name",
    [
        "best.ckpt",
        "last-previous.ckpt",
        "config.yaml",
        "tensorboard/events.out.tfevents.1.host.1",
        "samples/step-1.png",
    ],
)
def test_any_file_of_a_run_guards_its_folder(name, fast_config, command, tmp_path):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_bytes(b"a run's")
    before = read_files(tmp_path / "run")
    message = get_error_sentence(*command("fit", "--config", fast_config(tmp_path / "run"))[::2])
    assert f"there is {tmp_path / 'run' / name}" in message
    assert "--ckpt_path last" in message
    assert "--trainer.default_root_dir FOLDER" in message
    assert read_files(tmp_path / "run") == before


def test_a_run_is_not_overwritten_by_one_that_is_resumed_from_elsewhere(digits_run, fast_config, command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.ckpt").write_bytes(b"another run's")
    options = ("--ckpt_path", digits_run.folder / "last.ckpt")
    message = get_error_sentence(*command("fit", "--config", fast_config(tmp_path / "run"), *options)[::2])
    assert f"there is {tmp_path / 'run' / 'best.ckpt'}" in message


def test_resuming_where_nothing_is_says_what_to_do(fast_config, command, tmp_path):
    config = fast_config(tmp_path / "run")
    message = get_error_sentence(*command("fit", "--config", config, "--ckpt_path", "last")[::2])
    assert f"there is no checkpoint {tmp_path / 'run' / 'last.ckpt'}, nor any other file of a run" in message
    assert "leave --ckpt_path out" in message
    message = get_error_sentence(*command("test", "--config", config, "--ckpt_path", "best")[::2])
    assert "a run has one once the metric of Checkpoints' monitor was measured" in message


def test_a_config_does_not_hold_where_its_run_started(digits_run, fast_config, command, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    shutil.copytree(digits_run.folder, first)
    options = ("--trainer.default_root_dir", first, "--trainer.max_steps", "6", "--ckpt_path", first / "last.ckpt")
    status, _, err = command("fit", "--config", first / "config.yaml", *options)
    assert status == 0, err
    config = read_yaml(first / "config.yaml")
    assert "ckpt_path" not in config
    # an earlier version's config holds it: it is ignored, and this is printed
    write_yaml(tmp_path / "old.yaml", config | {"ckpt_path": str(first / "last.ckpt"), "weights_only": True})
    options = ("--trainer.default_root_dir", again, "--trainer.max_steps", "2")
    status, out, err = command("fit", "--config", tmp_path / "old.yaml", *options)
    assert status == 0, err
    assert f"ckpt_path {first / 'last.ckpt'} in a config is ignored" in out
    assert [step for step, _ in read_losses(again)] == [1, 2]


def start(*arguments):
    """Start a fit in another process, and wait until it trains."""
    words = [sys.executable, "-u", "-m", "lightning_ddpm", "fit", *map(str, arguments)]
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("training: "):
            return process
    raise AssertionError(f"it ended with status {process.wait()}")


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(fast_config, command, tmp_path):
    config = fast_config(tmp_path / "run", max_steps=10**6)
    first = start("--config", config, "--trainer.callbacks.every_n_steps", 10**6)
    try:
        for options in ([], ["--ckpt_path", "last"]):
            message = get_error_sentence(*command("fit", "--config", config, *options)[::2])
            assert f"{tmp_path / 'run'} is in use by another run (process {first.pid} on " in message
        assert command("fit", "--config", config, "--print_config")[0] == 0
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert (tmp_path / "run" / ".lock").exists()  # a killed process removes nothing
    message = get_error_sentence(*command("fit", "--config", config)[::2])
    assert "already holds a run" in message
    options = ("--ckpt_path", "last", "--trainer.max_steps", "2")
    status, out, err = command("fit", "--config", config, *options)
    assert status == 0, err
    assert f"the run in {tmp_path / 'run'} was stopped before its first checkpoint; it begins again at step 0" in out
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert {".lock", ".unsaved"}.isdisjoint(os.listdir(tmp_path / "run"))


def test_a_run_that_is_refused_leaves_its_folder_free(fast_config, command, tmp_path):
    config = fast_config(tmp_path / "run", max_steps=1)
    status, _, err = command("fit", "--config", config, "--data.batch_size", "5000")
    assert "batch_size" in get_error_sentence(status, err)
    status, _, err = command("fit", "--config", config)
    assert status == 0, err


@pytest.mark.parametrize("name", ["config.yaml", ".unsaved", "last.ckpt", ".lock"])
def test_a_folder_in_place_of_a_file_of_the_run_is_refused_before_the_work(fast_config, command, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    status, out, err = command("fit", "--config", fast_config(tmp_path / "run"))
    assert str(tmp_path / "run" / name) in get_error_sentence(status, err)
    assert out == ""


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot open .*\.lock"), lock_folder(tmp_path, "wait"):
        pass
    assert (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_is_full_when_the_config_is_written_costs_no_file(fast_config, command, tmp_path):
    config = fast_config(tmp_path / "run", max_steps=1)
    content = read_yaml(config)
    content["trainer"]["callbacks"].insert(0, {"class_path": "helpers.full_disk.FullAtStart"})
    full = write_yaml(tmp_path / "full.yaml", content)

    def fail(*options):
        with limit_files(resource.RLIM_INFINITY):  # which the callback lowers
            status, _, err = command("fit", "--config", full, *options)
        assert f"{tmp_path / 'run' / 'config.yaml'} was being written" in get_error_sentence(status, err)

    fail()
    assert not list((tmp_path / "run").iterdir())
    status, _, err = command("fit", "--config", config)
    assert status == 0, err
    before = read_files(tmp_path / "run")
    fail("--ckpt_path", "last", "--trainer.max_steps", "2")
    assert read_files(tmp_path / "run") == before


def test_predict_does_not_mix_two_sets(fast_config, command, tmp_path):
    folder = tmp_path / "run" / "predictions"
    folder.mkdir(parents=True)
    (folder / "000070.png").touch()
    options = ("--config", fast_config(tmp_path / "run"), "--ckpt_path", WEIGHTS)
    message = get_error_sentence(*command("predict", *options)[::2])
    assert f"{folder} holds images already; move or delete them" in message
