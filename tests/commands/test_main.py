"""The command line as a whole: help, the list of commands, exit statuses."""

import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.command_line import ddpm, run
from helpers.command_outputs import get_error_sentence

import lightning_ddpm
from lightning_ddpm.commands.main import COMMANDS


def test_help_lists_the_commands_without_importing_torch():
    started = run(sys.executable, "-X", "importtime", "-m", "lightning_ddpm", "--help")
    assert started.returncode == 0
    for command in ("fit", "sample", "export", "import", "validate", "test", "predict"):
        assert f"\n  {command} " in started.stdout
    imported = {line.split("|")[-1].strip() for line in started.stderr.splitlines()}
    assert "lightning_ddpm.commands.main" in imported
    assert "torch" not in imported


@pytest.mark.parametrize(
    ("name", "option"), [("fit", "--data.batch_size"), ("sample", "--trajectory"), ("validate", "--ckpt_path")]
)
def test_the_help_of_a_command_lists_its_options(name, option, command):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert option in out


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_shows_an_address_in_memory(name, command):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert " at 0x" not in " ".join(out.split())


def test_the_version_is_printed(command):
    assert command("--version") == (0, f"lightning-ddpm {lightning_ddpm.__version__}\n", "")


def test_the_installed_script_runs_the_same_program():
    script = Path(sysconfig.get_path("scripts")) / "lightning-ddpm"
    if not script.exists():
        pytest.skip("the package is not installed, so its script is not there")
    assert run(script, "--help").stdout == run(sys.executable, "-m", "lightning_ddpm", "--help").stdout


def test_an_unknown_command_is_named():
    ended = ddpm("smaple", "--n", "5")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert (
        get_error_sentence(ended.returncode, ended.stderr) == "error: there is no command smaple; did you mean sample?"
    )
