"""The sweeps of their page: a trial that is killed is resumed by the next call, with its settings."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import optuna
import pytest
import yaml
from helpers.command_line import REPOSITORY, run

from lightning_ddpm.commands.main import main

PAGE = REPOSITORY / "docs" / "how-to" / "sweeps.md"
TINY = {
    "max_steps": 8,
    "val_check_interval": 4,
    "log_every_n_steps": 4,
    "accelerator": "cpu",
    "callbacks.Evaluation.n": 65,
    "callbacks.Evaluation.every_n_steps": 4,
    "callbacks.Evaluation.sampler.init_args.steps": 2,
    "callbacks.Memorisation.sampler.init_args.steps": 2,
    "callbacks.Memorisation.n": 20,
    "callbacks.Checkpoints.every_n_steps": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("found", [".unsaved", "last.ckpt"])  # before the first checkpoint, and after it
def test_a_trial_that_is_killed_is_resumed_by_the_next_call(found: str, tmp_path: Path) -> None:
    (script,) = re.findall(r":caption: sweep\.py\n\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    beat = '"heartbeat_interval": 15, "grace_period": 30'
    assert beat in script
    (tmp_path / "sweep.py").write_text(script.replace(beat, '"heartbeat_interval": 1, "grace_period": 2'))
    options = [word for name, value in TINY.items() for word in (f"--trainer.{name}", str(value))]
    command = ["import os, runpy, sys; os.chdir(sys.argv.pop(1)); runpy.run_path('sweep.py', run_name='__main__')"]
    command = [sys.executable, "-c", *command, str(tmp_path), "1", *options]

    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while not list(tmp_path.glob(f"checkpoints/sweep/*/{found}")):
            assert process.poll() is None, f"the sweep ended without {found}"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(3)  # until the killed trial's heartbeat is late
    ended = run(*command)
    assert ended.returncode == 0, ended.stderr
    assert ("resuming after step" in ended.stdout) == (found == "last.ckpt")
    assert "best of 2 trials" in ended.stdout
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{tmp_path}/checkpoints/sweep/study.db")
    killed, resumed = study.trials
    assert [killed.state.name, resumed.state.name] == ["FAIL", "COMPLETE"]
    assert killed.params == resumed.params
    assert len(list(tmp_path.glob("checkpoints/sweep/*/best.ckpt"))) == 1


def test_a_trial_of_wandb_is_a_run_of_its_own_that_is_resumed(tmp_path: Path) -> None:
    """The agent's command, expanded by wandb itself, with a stand-in that prints what it is given."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep, trial = (
        re.search(rf":caption: {name}\n\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]  # type: ignore[index]
        for name in ("sweep.yaml", "trial.sh")
    )
    config = yaml.safe_load(sweep)
    (tmp_path / "trial.sh").write_text(trial)
    program = tmp_path / "lightning-ddpm"
    program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    values = {"args": {name: {"value": 1e-3 if "lr" in name else 16} for name in config["parameters"]}}
    assert config["command"][-1] == "${args}"
    command = [*config["command"][:-1], *utils.create_sweep_command_args(values)["args"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "abc"}
    run_folder = tmp_path / "checkpoints" / "sweep" / "abc"
    run_folder.mkdir(parents=True)
    for existing in (None, ".unsaved", "last.ckpt"):
        if existing:
            (run_folder / existing).touch()
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        words = ran.stdout.splitlines()
        assert words[words.index("--trainer.default_root_dir") + 1] == "checkpoints/sweep/abc"
        assert (words[-2:] == ["--ckpt_path", "last"]) == bool(existing)
        (run_folder / ".unsaved").unlink(missing_ok=True)
    options = words[:-2]
    assert options[:3] == ["fit", "--config", "digits"]
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        main([*options, "--print_config"])
    parsed = yaml.safe_load(printed.getvalue())
    assert parsed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3
    assert parsed["model"]["init_args"]["network"]["init_args"]["width"] == 16
    assert parsed["trainer"]["logger"]["class_path"].endswith("WandbLogger")
