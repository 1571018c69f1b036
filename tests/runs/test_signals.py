"""Signals: at every moment of fit they end in status 0 and a state that can be resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import REPOSITORY, TWO, callback, ddpm, tiny_digits, write_yaml

PATH = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
DIGITS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
BEFORE = "stopped before the first step; run the same command again"
AFTER = "stopped after the end of training; to measure what is missing, resume with --ckpt_path last"


def fit(folder: Path, hook: str, *names: str, options: tuple[object, ...] = (), **spy: Any) -> Any:
    """Run ``fit``, with the signals when a hook is called."""
    config = tiny_digits(folder / "run")
    kept = "EMA", "Checkpoints", "Memorisation" if hook == "on_fit_end" else ""
    callbacks = config["trainer"]["callbacks"]
    callbacks = [each for each in callbacks if each["class_path"].rpartition(".")[2] in kept]
    spy = {"hook": hook, "names": list(names), **spy}
    callbacks.insert(0, {"class_path": "helpers.run_spies.SignalAt", "init_args": spy})
    config["trainer"].update(callbacks=callbacks, limit_val_batches=2)
    callback(config, "Checkpoints").update(every_n_steps=100, monitor=None)
    return ddpm("fit", "--config", write_yaml(folder / "config.yaml", config), *options, PYTHONPATH=PATH)


def start(*words: object) -> subprocess.Popen[str]:
    """Start the program and wait until it handles signals."""
    line = [sys.executable, "-m", "lightning_ddpm", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": PATH}
    environment.pop("PL_GLOBAL_SEED", None)
    process = subprocess.Popen(
        line, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.002)
    return process


@pytest.mark.parametrize(("name", "seconds"), [("SIGTERM", 0), ("SIGUSR1", 0.3), ("SIGINT", 1)])
def test_a_signal_during_the_imports_ends_fit_with_status_0_and_leaves_nothing(
    tmp_path: Path, name: str, seconds: float
) -> None:
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    process = start("fit", "--config", config)
    time.sleep(seconds)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, f"{name}: {BEFORE}\n", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "name", "status"),
    [
        (("sample", "--ckpt", DIGITS, "--out"), "SIGINT", 130),
        (("evaluate", "--ckpt", DIGITS, "--n", 64, "--out"), "SIGTERM", 143),
    ],
)
def test_a_signal_ends_other_commands_with_one_sentence_and_its_status(
    tmp_path: Path, command: tuple[object, ...], name: str, status: int
) -> None:
    process = start(*command, tmp_path / "out")
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=60)
    sentence = f"{name}: {command[0]} stopped before it was done; run the same command again\n"
    assert (process.returncode, out, err) == (status, "", sentence)


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        ("setup", BEFORE),
        pytest.param("on_fit_start", BEFORE, marks=pytest.mark.slow),
        pytest.param("on_sanity_check_start", BEFORE, marks=pytest.mark.slow),
        pytest.param("on_validation_batch_start", BEFORE, marks=pytest.mark.slow),
        pytest.param("on_fit_end", AFTER, marks=pytest.mark.slow),
    ],
)
def test_a_signal_outside_the_steps_ends_fit_at_once(tmp_path: Path, hook: str, sentence: str) -> None:
    ended = fit(tmp_path, hook, "SIGTERM", seconds=600)
    assert ended.returncode == 0, ended.stderr
    assert f"SIGTERM: {sentence}\n" in ended.stdout
    assert "Traceback" not in ended.stderr
    left = {path.name for path in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert ("last.ckpt" in left) == (sentence == AFTER)
    if sentence == BEFORE:
        assert left <= {".lock"}  # which nobody holds


@pytest.mark.parametrize(
    ("hook", "spy", "options"),
    [
        ("on_train_batch_end", {}, ()),
        pytest.param(
            "on_train_batch_start",
            {"group": True, "workers": "fork"},
            ("--data.num_workers", 2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "on_train_batch_start",
            {"group": True, "workers": "spawn"},
            ("--data.num_workers", 1),
            marks=pytest.mark.slow,
        ),
        pytest.param("on_train_batch_start", {"group": True}, TWO, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_saves_and_stops(tmp_path: Path, hook: str, spy: Any, options: tuple[object, ...]) -> None:
    ended = fit(tmp_path, hook, "SIGINT", options=options, **spy)
    assert ended.returncode == 0, ended.stderr
    step = 2 if options == TWO else 1
    assert f"SIGINT: stopped after step {step}; resume with --ckpt_path last\n" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("options", [(), pytest.param(TWO, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_aborts(tmp_path: Path, options: tuple[object, ...]) -> None:
    ended = fit(tmp_path, "on_train_batch_start", "SIGINT", "SIGINT", options=options, seconds=600, group=bool(options))
    assert ended.returncode == 130, ended.stderr
    assert "SIGINT: aborted by the second Ctrl-C" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1])
def test_a_signal_to_one_of_two_ranks_before_the_first_step_ends_both(tmp_path: Path, rank: int) -> None:
    ended = fit(tmp_path, "on_fit_start", "SIGTERM", options=TWO, seconds=600, rank=rank)
    assert ended.returncode == 0, ended.stderr
    assert f"SIGTERM: {BEFORE}\n" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_signal_during_validation_is_obeyed_after_the_next_step(tmp_path: Path) -> None:
    ended = fit(tmp_path, "on_validation_start", "SIGUSR1", options=("--trainer.num_sanity_val_steps", 0))
    assert ended.returncode == 0, ended.stderr
    assert "SIGUSR1: stopped after step 3; resume with --ckpt_path last" in ended.stdout


@pytest.mark.slow
def test_a_signal_without_checkpoints_is_no_success(tmp_path: Path) -> None:
    config = tiny_digits(tmp_path / "run")
    spy = {"hook": "on_train_batch_end", "names": ["SIGTERM"], "seconds": 600}
    config["trainer"]["callbacks"] = [{"class_path": "helpers.run_spies.SignalAt", "init_args": spy}]
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), PYTHONPATH=PATH)
    assert ended.returncode == 143, ended.stderr
    assert "SIGTERM: stopped; nothing is saved" in ended.stderr
