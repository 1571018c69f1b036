"""Thousands of classes cost as much as their images, not the square of their number."""

import time

import pytest
import torch
import yaml
from helpers.command_line import callback, tiny_digits, write_yaml
from helpers.command_outputs import write_noise_image
from helpers.diffusers_models import write_checkpoint

from lightning_ddpm.models.checkpoint import load


def test_a_checkpoint_of_4000_classes_is_loaded_in_seconds(tmp_path):
    path = write_checkpoint(tmp_path / "model.ckpt", {"classes": 4000})
    content = torch.load(path, weights_only=True)
    names = [f"{index}e3" for index in range(4000)]  # YAML reads them as numbers
    content["hyper_parameters"]["class_names"] = names
    torch.save(content, path)
    begin = time.process_time()
    assert load(path).class_names == names
    assert time.process_time() - begin < 10  # a list that is copied for each of its items takes a minute


@pytest.mark.slow
def test_a_run_of_3000_classes_starts_in_seconds(tmp_path, command):
    names = sorted(f"class {index}" for index in range(3000))
    for name in names:
        write_noise_image(tmp_path / "images" / name / "0.png", (8, 8), "L")
    config = tiny_digits(tmp_path / "run")
    kept = ("EMA", "Checkpoints")
    config["trainer"]["callbacks"] = [
        each for each in config["trainer"]["callbacks"] if each["class_path"].rpartition(".")[2] in kept
    ]
    callback(config, "Checkpoints").update(monitor=None)
    config["trainer"].update(max_steps=1, limit_val_batches=0)
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"channels": 1, "size": 8}}
    config["data"].update(root=str(tmp_path / "images"), source=source)
    config["model"]["init_args"]["network"]["init_args"].update(classes=None)
    begin = time.process_time()
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 0, err
    assert time.process_time() - begin < 60  # otherwise two minutes
    assert load(tmp_path / "run" / "last.ckpt").class_names == names
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["init_args"]["class_names"] is None
