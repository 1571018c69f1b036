"""An imported model is sampled and fine-tuned by the command line."""

import pytest
import torch
import yaml
from helpers.command_line import callback, ddpm, tiny_digits, write_yaml
from helpers.diffusers_models import DIGITS, import_pipeline, make_pipeline
from helpers.tiny import weights


@pytest.mark.slow
def test_an_imported_model_is_sampled_from_and_fine_tuned_by_the_command_line(tmp_path, command):
    make_pipeline(DIGITS).save_pretrained(tmp_path / "in")
    start = weights(import_pipeline(tmp_path / "in", command))
    status, _, err = command("sample", "--ckpt", tmp_path / "imported.ckpt", "--n", "2", "--out", tmp_path / "samples")
    assert status == 0, err
    config = tiny_digits(tmp_path / "run")
    config["trainer"].update(max_steps=2, val_check_interval=1)
    config["trainer"]["callbacks"] = [
        each for each in config["trainer"]["callbacks"] if not each["class_path"].endswith(("Evaluation", "SampleGrid"))
    ]
    callback(config, "Checkpoints").update(every_n_steps=1, monitor=None)
    config["model"]["init_args"]["optimizer"]["init_args"].update(lr=1e-4)
    config["model"]["init_args"]["lr_scheduler"]["init_args"].update(start_factor=1.0)
    configs = ("--config", write_yaml(tmp_path / "c.yaml", config), "--config", tmp_path / "imported.yaml")
    ended = ddpm("fit", *configs, "--ckpt_path", tmp_path / "imported.ckpt")
    assert ended.returncode == 0, ended.stderr
    assert "not created with WeightAveraging" not in ended.stderr
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    for weight_set in ("state_dict", "current_model_state"):
        tuned = content[weight_set]
        moved = {name: (tuned[name] - value).abs().max().item() for name, value in start.items()}
        assert 0 < max(moved.values()) < 2.1e-4, weight_set  # two steps of Adam, each at most its learning rate
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert written["sampler"]["class_path"] == "lightning_ddpm.diffusion.Ancestral"
    status, _, err = command("fit", *configs, "--ckpt_path", tmp_path / "imported.ckpt")
    assert status == 2
    assert "already holds a run" in err
