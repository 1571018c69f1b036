"""Fixtures that tests of several commands share."""

import sys

import pytest
from helpers.command_line import tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence


@pytest.fixture
def refused(command, tmp_path):
    """Runs ``fit`` with a wrong config or option: it must fail before anything is written; returns the error."""

    def fit(change=None, *options):
        folder = tmp_path / "run"
        config = tiny_digits(folder)
        if change:
            change(config)
        status, out, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *options)
        message = get_error_sentence(status, err)
        assert "run: " not in out  # the summary before the first step
        left = [path.name for path in folder.rglob("*") if not path.name.startswith("events.out.tfevents.")]
        assert left == []
        return message

    return fit


@pytest.fixture
def own_module(monkeypatch, tmp_path):
    """Creates a module of the user's: a valid and an invalid function of time, and a spacing."""
    lines = (
        "def falling(time):\n    return (1 - time) ** 2",
        "def rising(time):\n    return 1 + time",
        "def short(T, steps):\n    return [T]",
    )
    (tmp_path / "my_schedule.py").write_text("\n\n\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_schedule", raising=False)
    monkeypatch.setenv("LIGHTNING_DDPM_TRUST", "my_schedule")
