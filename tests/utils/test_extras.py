"""A package that is missing is named with the command that installs it, wherever lightning_ddpm itself came from."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError

import pytest
from helpers.command_line import REPOSITORY

from lightning_ddpm.utils import extras
from lightning_ddpm.utils.errors import UserError

EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_extra_that_the_package_asks_for_is_one_and_installs_what_it_lists():
    text = "\n".join(path.read_text() for path in (REPOSITORY / "lightning_ddpm").rglob("*.py"))
    asked = set(re.findall(r"(?:import_extra\([^)]*, \"|write_install_command\([\"'])(\w+)[\"']\)", text))
    assert asked >= {"demo", "hub", "huggingface", "tiff", "arrays", "lsun"}
    for extra in asked:
        words = extras.write_install_command(extra).removeprefix("pip install ").split()
        assert {each.strip("'").replace("-", "_") for each in words} == {
            each.replace("-", "_") for each in EXTRAS[extra]
        }
    assert "lightning-ddpm[" not in text  # it may be on no index, or another program there may have its name


def test_a_package_that_is_missing_is_named_where_lightning_ddpm_is_not_installed_either(monkeypatch):
    def find_nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", find_nothing)
    expected = (
        "fields need the package no_such_package, which is not installed: install the extra tiff of pyproject.toml"
    )
    with pytest.raises(UserError, match=expected):
        extras.import_extra("no_such_package.fields", "fields", "tiff")
