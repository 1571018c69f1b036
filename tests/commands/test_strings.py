"""Class folders and paths whose names YAML could read as numbers, dates or null: they survive every command."""

import json

import pytest
import torch
from helpers.command_line import read_yaml, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence, write_noise_image

from lightning_ddpm.models.checkpoint import load

NAMES = sorted(
    ["1e3", "1_000", "0x1F", "2024-01-01", "null", "~", "yes", "5", "12:30", " a ", "a: b", "#x", "a,b", "\x1b[31m"]
)
"""The names of the classes, in the order of their labels."""


def fit(command, folder, root, *options):
    config = tiny_digits(folder)
    config["trainer"]["callbacks"] = [
        each for each in config["trainer"]["callbacks"] if each["class_path"].endswith((".EMA", ".Checkpoints"))
    ]
    config["trainer"]["callbacks"][1]["init_args"]["monitor"] = None
    config["model"]["init_args"]["network"]["init_args"]["classes"] = None
    source = {"channels": 1, "size": 8, "holdout": 0.5}
    config["data"].update(root=str(root), batch_size=8)
    config["data"]["source"] = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": source}
    path = write_yaml(folder.with_name(f"{folder.name}.yaml"), config)
    status, out, err = command("fit", "--config", path, *options)
    assert status == 0, err
    return out


@pytest.fixture
def named_run(command, tmp_path, monkeypatch):
    """A run whose data and run folder, given on the command line, have such names too; returns its folder."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        for index in range(2):
            write_noise_image(tmp_path / "2024-01-01" / name / f"{index}.png", (8, 8), "L")
    fit(command, tmp_path / "1e3", "unused", "--data.root", "2024-01-01", "--trainer.default_root_dir", "1e3")
    return tmp_path / "1e3"


def test_class_folders_and_paths_keep_their_names_in_every_command(named_run, command, tmp_path) -> None:
    config = read_yaml(named_run / "config.yaml")
    assert config["model"]["init_args"]["class_names"] is None  # the data have them
    config["model"]["init_args"]["class_names"] = NAMES
    assert load(named_run / "last.ckpt").class_names == NAMES
    content = torch.load(named_run / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["class_names"] == NAMES
    assert content["callbacks"]["Resume"]["config"] == {
        key: value for key, value in config.items() if key in content["callbacks"]["Resume"]["config"]
    }

    longer = ("--trainer.max_steps", 5, "--ckpt_path", "last")
    status, out, err = command("fit", "--config", named_run / "config.yaml", *longer)
    assert status == 0, err
    assert "resuming after step 4" in out
    assert "changed: trainer.max_steps was 4, is 5" in out
    assert out.count("changed: ") == 1

    for options, n in ((("--class", ",".join(NAMES)), len(NAMES)), (("--label", "2,0"), 2)):
        ckpt = ("--ckpt", named_run / "last.ckpt", "--steps", 2, "--n", n)
        status, out, err = command("sample", *ckpt, "--out", tmp_path / f"samples{n}", *options)
        assert status == 0, err
        assert "\x1b" not in out
        assert all(f"(label {label})" in out for label in (range(n) if n > 2 else (2, 0)))
    manifest = json.loads((tmp_path / f"samples{len(NAMES)}" / "set.json").read_text())
    assert manifest["classes"] == ", ".join('"a,b"' if name == "a,b" else name for name in NAMES)

    metrics = ("--n", 16, "--steps", 2, "--extractor", "DigitsFeatures", "--out", tmp_path / "1e3.json")
    status, out, err = command("evaluate", "--ckpt", named_run / "last.ckpt", *metrics)
    assert status == 0, err
    assert "fd_digits" in json.loads((tmp_path / "1e3.json").read_text())["metrics"]

    def refuse(*options):
        status, _, err = command("sample", "--ckpt", named_run / "last.ckpt", "--out", tmp_path / "out", *options)
        message = get_error_sentence(status, err)
        assert "\x1b" not in message
        assert not (tmp_path / "out").exists()
        return message

    assert "there is no class '1e3', counted from 0; --class_names takes its name" in refuse("--label", "1e3")
    assert f"--labels takes its number, --labels 3 for {NAMES[3]}" in refuse("--class", "3")
    assert "there is no class named '1000.0'; there are 0 (" in refuse("--class", "1000.0")
