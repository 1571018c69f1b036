"""Configs and checkpoints that ship are found by their names, wherever a command runs."""

import runpy
import shutil

import pytest
import yaml
from helpers.command_line import REPOSITORY
from helpers.command_outputs import get_error_sentence

import lightning_ddpm
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.shipped import CHECKPOINTS, CONFIGS, TEMPLATE


def test_every_shipped_folder_exists_and_a_wheel_finds_it_where_the_package_looks():
    shipped = (CONFIGS, CHECKPOINTS, TEMPLATE)
    included = runpy.run_path(str(REPOSITORY / "hatch_build.py"))["SHIPPED"]
    assert included == {each.beside: each.inside for each in shipped}
    assert all(each.get_folder() == REPOSITORY / each.beside for each in shipped)


def test_a_config_by_name_is_that_file(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_path = command("fit", "--config", REPOSITORY / "configs" / "digits.yaml", "--print_config")
    for option in (["--config", "digits"], ["--config=digits"], ["-c", "digits"]):
        assert command("fit", *option, "--print_config") == by_path


def test_a_file_in_the_working_folder_is_taken_before_one_that_ships(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("trainer: {max_steps: 7}\n")
    status, out, err = command("fit", "--config", "digits", "--print_config")
    assert status == 0, err
    assert yaml.safe_load(out)["trainer"]["max_steps"] == 7
    assert CONFIGS.find("digits") is None
    assert CONFIGS.find("mnist") == REPOSITORY / "configs" / "mnist.yaml"


@pytest.mark.parametrize("name", ["", "../configs/digits", "digits.yaml", "./digits", "digit", "digits\n"])
def test_only_a_bare_name_is_one(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert CONFIGS.find(name) is None


def test_a_checkpoint_by_name_is_loaded_and_compared_with_its_digest(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert lightning_ddpm.load("digits").image_shape == (1, 8, 8)
    inside = tmp_path / "pretrained"
    shutil.copytree(CHECKPOINTS.get_folder(), inside)
    with (inside / "digits.ckpt").open("ab") as file:
        file.write(b"more")
    monkeypatch.setattr("lightning_ddpm.utils.shipped.PACKAGE", tmp_path)
    with pytest.raises(UserError, match=r"digits.ckpt is not the file that .*SHA256SUMS lists"):
        lightning_ddpm.load("digits")


def test_a_wrong_name_leads_to_the_right_ones(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for arguments, expected in [
        (("fit", "--config", "digit"), f"there is no file digit; those that ship are {CONFIGS.list_names()[0]}, "),
        (("fit", "--config", "configs/digits.yaml"), "; digits, without folder and suffix, is the one that ships"),
        (("sample", "--ckpt", "digit", "--n", "1", "--out", "x"), "; those that ship are digits, digits_classifier, "),
        (("fit", "--config", "digits", "--ckpt_path", "a/digits.ckpt"), "digits, without folder and suffix"),
    ]:
        status, _, err = command(*arguments)
        assert expected in get_error_sentence(status, err)
