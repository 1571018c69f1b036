"""``reconstruct`` and ``tune``: the length of the average, chosen after training."""

import json
import shutil

import pytest
import torch
from helpers.command_line import tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence

from lightning_ddpm.commands import tune
from lightning_ddpm.models.power_average import SHORTEST
from lightning_ddpm.models.snapshots import format_length, reconstruct
from lightning_ddpm.utils.hashing import hash_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run with snapshots; read from it, do not write into it."""
    from lightning_ddpm.commands.main import main

    folder = tmp_path_factory.mktemp("trained")
    config = tiny_digits(folder / "run")
    callbacks = config["trainer"]["callbacks"]
    kept = [each for each in callbacks if each["class_path"].endswith((".EMA", ".Checkpoints"))]
    kept[-1]["init_args"]["monitor"] = None
    config["trainer"].update(callbacks=kept, limit_val_batches=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        options = ("--trainer.callbacks+", "PostHocEMA", "--trainer.callbacks.PostHocEMA.every_n_steps", "1")
        assert main(["fit", "--config", str(write_yaml(folder / "config.yaml", config)), *options]) == 0
    return folder / "run"


def test_a_length_is_reconstructed_and_sampled(trained, command, tmp_path):
    out = tmp_path / "average.ckpt"
    status, text, err = command("reconstruct", "--ckpt", trained, "--sigma_rel", "0.2", "--out", out)
    assert status == 0, err
    assert "the average of length 0.2 of 4 steps, from 8 snapshots; its profile differs by" in text
    written, last = (torch.load(path, weights_only=True) for path in (out, trained / "last.ckpt"))
    found = reconstruct(trained, 0.2).weights
    assert written["state_dict"].keys() == last["state_dict"].keys()
    assert all(torch.equal(written["state_dict"][name], value) for name, value in found.items())
    assert written["average"]["sigma_rel"] == 0.2
    status, _, err = command("sample", "--ckpt", out, "--n", "2", "--out", tmp_path / "samples")
    assert status == 0, err
    message = get_error_sentence(*command("reconstruct", "--ckpt", trained, "--sigma_rel", "0.2", "--out", out)[::2])
    assert "exists already" in message


def test_the_best_length_is_chosen_and_reported_on_other_images(trained, command, tmp_path):
    measured = ("--extractor", "DigitsFeatures", "--n", "70", "--steps", "2", "--batch_size", "35")
    lengths = ("--sigma_rels", "0.05", "0.15")
    out = tmp_path / "tuned.json"
    status, text, err = command("tune", "--ckpt", trained / "last.ckpt", *lengths, "--out", out, *measured)
    assert status == 0, err
    result = json.loads(out.read_text())
    chosen, reported = result["chosen"], result["reported"]
    assert chosen["metric"] == "fd_digits"
    assert chosen["best"] == float(min(chosen["values"], key=chosen["values"].get))
    path = trained / f"sigma_rel_{chosen['best']:g}.ckpt"
    assert reported["images"]["checkpoint"] == str(path)
    assert (chosen["seed"], reported["images"]["seed"]) == (0, 1)
    assert reported["metrics"]["fd_digits"]["value"] not in chosen["values"].values()
    assert f"{reported['metrics']['fd_digits']['value']:.5g} of images of seed 1" in text
    assert not list(trained.glob(".tune*"))
    kept = json.loads((trained / "tune" / f"sigma_rel_{chosen['best']:g}_seed_1.json").read_text())
    assert kept["metrics"] == reported["metrics"]
    for length in (0.05, 0.15):  # also those whose checkpoint was temporary
        images = json.loads((trained / "tune" / f"sigma_rel_{length:g}_seed_0.json").read_text())["images"]
        assert images["checkpoint"] == str(trained / f"sigma_rel_{length:g}.ckpt")
        rebuilt = tmp_path / f"{length:g}.ckpt"
        assert command("reconstruct", "--ckpt", trained, "--sigma_rel", length, "--out", rebuilt)[0] == 0
        assert images["sha256"] == hash_file(rebuilt)
    again = tmp_path / "again.json"
    status, _, err = command("evaluate", "--ckpt", path, *measured, "--out", again)
    assert status == 0, err
    value = json.loads(again.read_text())["metrics"]["fd_digits"]["value"]
    assert value == pytest.approx(min(chosen["values"].values()), rel=1e-6)


def test_a_metric_that_is_not_finite_is_never_best_and_is_reported(trained, command, monkeypatch):
    values = {(0.06, 0): None, (0.07, 0): 3.0, (0.08, 0): 4.0, (0.07, 1): None}

    def evaluate(path, folder, sigma_rel, seed, others):
        return "fd", {"metrics": {"fd": {"value": values[sigma_rel, seed]}}}

    monkeypatch.setattr(tune, "_evaluate", evaluate)
    status, text, err = command("tune", "--ckpt", trained, "--sigma_rels", "0.06", "0.07", "0.08")
    assert status == 0, err
    assert "sigma_rel 0.07 has the best fd, 3, of images of seed 0" in text
    assert "sigma_rel_0.07.ckpt: fd not finite of images of seed 1" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reconstruct", "--sigma_rel", "0.4"), "must lie in [1e-06, 0.28], got 0.4"),
        (("reconstruct", "--sigma_rel", "4e-7"), "must lie in [1e-06, 0.28], got 4e-07"),
        (("reconstruct", "--sigma_rel", "0.1", "--step", "9"), "has no snapshot after step 9; it has those of 1, 2, 3"),
        (("tune", "--report_seed", "0"), "--report_seed must differ from --seed, got 0 twice"),
        (("tune", "--sigma_rels", "0.1", "0.1"), "--sigma_rels compares two or more different lengths"),
        (("tune", "--devices", "2"), "tune evaluates the averages of one run, on one device; remove --devices"),
        (("tune", "--n", "1"), "at least 2 images"),
        (("tune", "--sigma_rel", "0.1"), "--sigma_rel"),
    ],
)
def test_wrong_options_are_refused(words, message, trained, command):
    status, _, err = command(words[0], "--ckpt", trained, *words[1:])
    assert message in get_error_sentence(status, err)


def test_the_default_step_is_the_last_one_of_which_every_length_is_there(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    first, *_ = sorted((run / "snapshots").glob("step-0000004-*"))
    first.unlink()  # as a run leaves it that is killed between the two, or that writes while it is read
    assert reconstruct(run, 0.1).step == 3
    assert reconstruct(run, 0.1, 4).step == 4
    for each in (run / "snapshots").glob("step-000000[123]-*"):
        each.unlink()
    assert reconstruct(run, 0.1).step == 4  # the only one


def test_the_shortest_length_has_a_name():
    assert format_length(SHORTEST) == "0.000001"


def test_a_run_without_snapshots_is_refused(trained, command, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "last.ckpt", tmp_path / "run")
    status, _, err = command("reconstruct", "--ckpt", tmp_path / "run", "--sigma_rel", "0.1")
    assert "has no snapshots of averaged weights; train with the callback PostHocEMA" in get_error_sentence(status, err)
    status, _, err = command("reconstruct", "--ckpt", tmp_path / "none", "--sigma_rel", "0.1")
    assert "there is no run in" in get_error_sentence(status, err)
