"""``--trainer.precision auto``: what is chosen, that it stays, and where it is refused."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.command_line import run as run_process
from helpers.command_line import tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence
from jsonargparse import Namespace

from lightning_ddpm.commands import precision
from lightning_ddpm.commands.precision import VARIABLE, choose_precision
from lightning_ddpm.utils.errors import UserError


@pytest.fixture(autouse=True)
def _no_choice_left(monkeypatch) -> None:
    """A choice that a test leaves in the environment ends with it."""
    monkeypatch.setenv(VARIABLE, "left by the test before")


def options(**changes: Any) -> Namespace:
    return Namespace(**{"precision": "auto", "accelerator": "cpu", "devices": 1, "num_nodes": 1} | changes)


@pytest.mark.parametrize(("ratio", "chosen"), [(1.8, "bf16-mixed"), (1.05, "32-true"), (0.004, "32-true")])
def test_bf16_is_chosen_where_it_is_faster_by_a_tenth(ratio, chosen) -> None:
    trainer = options()
    sentence = choose_precision(trainer, "fit", None, False, lambda device: ratio)
    assert trainer.precision == chosen
    assert sentence is not None
    assert sentence.startswith(f"precision {chosen}, by measurement: ")
    assert f"{ratio} times as fast as in float32 on cpu, threads: {torch.get_num_threads()}" in sentence


def test_a_given_precision_is_not_measured() -> None:
    for given in ("32-true", "bf16-mixed", None):
        trainer = options(precision=given)
        assert choose_precision(trainer, "fit", None, False, measure=None) is None
        assert trainer.precision == given


@pytest.mark.parametrize(
    ("found", "given", "measured"),
    [
        (True, {"accelerator": "auto"}, "cuda:0"),
        (True, {"accelerator": "gpu", "devices": 2}, "cuda:0"),
        (True, {"accelerator": "cuda", "devices": [3, 1]}, "cuda:3"),
        (True, {"accelerator": "gpu", "devices": "2,"}, "cuda:2"),
        (True, {"accelerator": "cpu", "devices": [1]}, "cpu"),
        (False, {"accelerator": "auto"}, "cpu"),
    ],
)
def test_the_first_device_of_the_run_is_measured(found, given, measured, monkeypatch) -> None:
    devices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(precision, "name_device", str)
    choose_precision(options(**given), "fit", None, False, lambda device: devices.append(str(device)) or 2.0)
    assert devices == [measured]


def test_other_accelerators_are_not_measured() -> None:
    trainer = options(accelerator="mps")
    sentence = choose_precision(trainer, "fit", None, False, measure=None)
    assert (trainer.precision, sentence) == (
        "32-true",
        "precision 32-true: bfloat16 is measured on CPUs and CUDA GPUs only",
    )


def test_processes_of_another_launcher_are_refused(monkeypatch) -> None:
    with pytest.raises(UserError, match=r"processes on 2 nodes might choose differently; give --trainer.precision"):
        choose_precision(options(num_nodes=2), "fit", None, False, measure=None)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="processes that torchrun starts might choose differently"):
        choose_precision(options(), "fit", None, False, measure=None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    trainer = options()
    choose_precision(trainer, "fit", None, False, lambda device: 2.0)
    assert trainer.precision == "bf16-mixed"


def make_config(folder: Path, **trainer: Any) -> Path:
    """Write a config of a tiny run with ``precision: auto`` and return its path."""
    made = tiny_digits(folder / "run")
    made["trainer"] |= {"max_steps": 2, "limit_val_batches": 1, "precision": "auto"} | trainer
    made["trainer"]["callbacks"] = [
        {"class_path": "lightning_ddpm.callbacks.Checkpoints", "init_args": {"every_n_steps": 1}}
    ]
    return write_yaml(folder / "config.yaml", made)


@pytest.fixture
def run(command, tmp_path, monkeypatch) -> Any:
    """Runs a command on a tiny run with ``precision: auto`` and a measured ratio; returns status, output, errors."""

    def call(name: str, *words: object, ratio: float | None = None, **trainer: Any) -> tuple[int, str, str]:
        def choose(*arguments: Any) -> str | None:
            return choose_precision(*arguments, measure=lambda device: ratio)

        monkeypatch.setattr("lightning_ddpm.commands.fit.choose_precision", choose)
        found: tuple[int, str, str] = command(name, "--config", make_config(tmp_path, **trainer), *words)
        return found

    return call


def read_config(folder: Path) -> tuple[str, Any]:
    """Return the first line of the run's config.yaml, and its precision."""
    text = (folder / "run" / "config.yaml").read_text()
    return text.splitlines()[0], yaml.safe_load(text)["trainer"]["precision"]


def test_the_choice_is_printed_and_kept_by_the_run_and_the_commands_that_follow(run, command, tmp_path) -> None:
    status, out, err = run("fit", ratio=2.5)
    assert status == 0, err
    assert "precision bf16-mixed, by measurement: a step in bfloat16 is 2.5 times as fast" in out
    assert "1 thread, precision bf16-mixed" in out
    comment, chosen = read_config(tmp_path)
    assert comment.startswith("# precision bf16-mixed, by measurement: a step in bfloat16 is 2.5 times as fast")
    assert chosen == "bf16-mixed"

    status, out, err = run("fit", "--ckpt_path", "last", ratio=0.01, max_steps=3)
    assert status == 0, err
    assert "precision bf16-mixed, as in the checkpoint's run" in out
    assert "changed: trainer.precision" not in out
    assert read_config(tmp_path)[1] == "bf16-mixed"
    for name in ("validate", "predict"):
        status, out, err = run(name, "--ckpt_path", "last", "--data.predict_images", 1, ratio=0.01)
        assert status == 0, err
        assert "precision bf16-mixed, as in the checkpoint's run" in out
    status, out, err = command(
        *("fit", "--config", tmp_path / "run" / "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", 4)
    )
    assert status == 0, err
    assert "1 thread, precision bf16-mixed" in out


def test_a_checkpoint_without_a_precision_and_other_commands_refuse_auto(run, command, digits_run, tmp_path) -> None:
    checkpoint = torch.load(digits_run.folder / "last.ckpt", weights_only=True)
    del checkpoint["callbacks"]["Resume"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    status, _, err = run("validate", "--ckpt_path", tmp_path / "other.ckpt")
    message = get_error_sentence(status, err)
    assert "--trainer.precision auto takes the precision of the checkpoint's run in validate" in message
    assert "give --trainer.precision bf16-mixed or 32-true" in message
    words = ("--ckpt", digits_run.folder / "last.ckpt", "--out", tmp_path / "out", "--precision", "auto")
    status, _, err = command("sample", *words)
    assert "--precision auto is for fit only; give 32-true, bf16-mixed" in get_error_sentence(status, err)


def test_this_machine_is_measured(command, tmp_path) -> None:
    status, out, err = command("fit", "--config", make_config(tmp_path))
    assert status == 0, err
    comment, chosen = read_config(tmp_path)
    ratio = float(comment.partition("bfloat16 is ")[2].split()[0])
    assert chosen == ("bf16-mixed" if ratio >= precision.WORTHWHILE else "32-true")
    assert comment.startswith(f"# precision {chosen}, by measurement: ")
    assert comment[2:] in out


RANKS = """
import os, sys
from lightning_ddpm.commands import precision
from lightning_ddpm.commands.main import main
from lightning_ddpm.commands.precision import is_first_rank
from lightning_ddpm.commands import fit
chosen = precision.choose_precision
ratio = 2.0 if is_first_rank() else 0.5
def choose(trainer, *arguments):
    found = chosen(trainer, *arguments, measure=lambda device: ratio)
    open(f"{sys.argv[2]}-{os.getpid()}.json", "w").write(f'["{trainer.precision}", {int(is_first_rank())}]')
    return found
fit.choose_precision = choose
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_every_rank_has_the_first_ones_choice(tmp_path) -> None:
    script, seen = tmp_path / "ranks.py", tmp_path / "seen"
    script.write_text(RANKS)
    config = make_config(tmp_path, devices=2, strategy="ddp")
    environment = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    ended = run_process(sys.executable, script, "ranks", seen, "fit", "--config", config, **environment)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(file.read_text()) for file in tmp_path.glob("seen-*.json")]
    assert sorted(found) == [["bf16-mixed", 0], ["bf16-mixed", 1]]
    assert ended.stdout.count("by measurement") == 1
