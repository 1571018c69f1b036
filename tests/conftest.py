"""Fixtures that several test files share."""

import os
from pathlib import Path
from typing import NamedTuple

# Tiny models are faster on one thread, and processes side by side far more so: set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from helpers.command_line import ddpm, tiny_digits, write_yaml

from lightning_ddpm.commands.main import main


def pytest_collection_modifyitems(items):
    """The longest test first, lest one process be left alone with it at the end."""
    items.sort(key=lambda item: "killed_at_random_moments" not in item.name)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """What the package caches goes to a folder of this session, in this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Lightning calls jsonargparse by names that its newest versions warn of.
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        yield


class FinishedRun(NamedTuple):
    """A finished run: its folder, and what it printed."""

    folder: Path
    out: str
    err: str


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """configs/digits.yaml, shrunk, trained for four steps by the command line. Read from it, do not write into it."""
    folder = tmp_path_factory.mktemp("digits")
    config = write_yaml(folder / "config.yaml", tiny_digits(folder / "run"))
    ended = ddpm("fit", "--config", config)
    assert ended.returncode == 0, ended.stderr
    return FinishedRun(folder / "run", ended.stdout, ended.stderr)


@pytest.fixture
def offline(monkeypatch):
    """Every download fails at once, whatever network there is."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command of the command line in this process: (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that what the command sets is taken back after the test
        try:
            status = main([str(word) for word in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call
