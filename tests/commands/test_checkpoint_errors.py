"""Checkpoints that commands must refuse."""

from pathlib import Path

import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence, read_files


class Code:
    """An object whose unpickling creates a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def write_with_code(path, mark):
    torch.save({"state_dict": {}, "hyper_parameters": {"_class_path": Code(mark)}}, path)


@pytest.fixture(params=["sample", "validate", "fit"])
def refuse_checkpoint(request, command, tmp_path):
    """Gives a checkpoint to a command, which must refuse it; returns the error."""

    def call(path):
        folder = tmp_path / "run"
        if request.param == "sample":
            status, _, err = command("sample", "--ckpt", path, "--out", folder)
        else:
            config = write_yaml(tmp_path / "config.yaml", tiny_digits(folder))
            status, _, err = command(request.param, "--config", config, "--ckpt_path", path)
        assert not folder.exists() or not read_files(folder)
        return get_error_sentence(status, err)

    return call


def test_a_missing_checkpoint_is_named(refuse_checkpoint, tmp_path):
    assert f"there is no checkpoint {tmp_path / 'none.ckpt'}" in refuse_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_of_another_program_is_refused(refuse_checkpoint, tmp_path):
    torch.save({"model": torch.zeros(3)}, tmp_path / "other.ckpt")
    assert "another program" in refuse_checkpoint(tmp_path / "other.ckpt")


def test_a_file_that_is_no_checkpoint_is_refused(refuse_checkpoint, tmp_path):
    (tmp_path / "text.ckpt").write_text("Dear reader,")
    assert str(tmp_path / "text.ckpt") in refuse_checkpoint(tmp_path / "text.ckpt")


def test_code_in_a_checkpoint_is_refused_and_does_not_run(refuse_checkpoint, tmp_path):
    path, mark = tmp_path / "code.ckpt", tmp_path / "it-ran"
    write_with_code(path, mark)
    message = refuse_checkpoint(path)
    assert str(path) in message
    assert "could run code" in message
    assert not mark.exists()
    torch.load(path, weights_only=False)  # an unrestricted load of the same file does run the code
    assert mark.exists()


def test_a_damaged_checkpoint_is_refused(refuse_checkpoint, digits_run, tmp_path):
    whole = (digits_run.folder / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert str(tmp_path / "half.ckpt") in refuse_checkpoint(tmp_path / "half.ckpt")


def test_validate_requires_a_checkpoint(command, tmp_path):
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    status, _, err = command("validate", "--config", config)
    assert "--ckpt_path" in get_error_sentence(status, err)
