"""A run with conditions that is killed and resumed ends bit for bit as an uninterrupted one."""

import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.blobs import EMBEDDINGS, IMAGE, describe, pair, small_config, write_blobs
from helpers.command_line import REPOSITORY, TWO, callback, ddpm, write_yaml
from helpers.run_results import assert_equal, curves, trained
from helpers.run_spies import steps


def fit(folder: Path, kind: str, *options: object, kill_at: int | None = None) -> Any:
    """Run ``fit`` for eight steps of 8 images, with dropout, flips and half of the conditions hidden."""
    blobs, two = folder.parent / "blobs", TWO[2] in options
    source, conditions = (pair(blobs), IMAGE) if kind == "image" else (describe(blobs), EMBEDDINGS)
    if kind in ("vector", "multilabel"):
        conditions = [each for each in EMBEDDINGS if kind in each["class_path"].lower()]
    config = small_config(folder / "run", conditions, *source, dropout=0.3)
    config["trainer"].update(max_steps=8, val_check_interval=4)
    callback(config, "Checkpoints").update(every_n_steps=3)
    callback(config, "SampleGrid").update(every_n_steps=4)
    spy = {"folder": str(folder), "kill_at": kill_at, "rank": int(two)}
    config["trainer"]["callbacks"].append({"class_path": "helpers.run_spies.Diary", "init_args": spy})
    config["model"]["init_args"].update(label_dropout=0.5)
    config["data"].update(batch_size=4 if two else 8, flip=True)
    words = ("fit", "--config", write_yaml(folder / "config.yaml", config), *options)
    return ddpm(*words, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [("vector", ()), ("multilabel", ()), ("image", ()), ("vector and multilabel", TWO)]
)
def test_a_killed_run_with_a_condition_resumes_to_the_same_end(kind: str, options: Any, tmp_path: Path) -> None:
    write_blobs(tmp_path / "blobs")
    whole = fit(tmp_path / "whole", kind, *options)
    assert whole.returncode == 0, whole.stderr
    killed = fit(tmp_path / "killed", kind, *options, kill_at=5)
    assert killed.returncode == -signal.SIGKILL or (options and killed.returncode), killed.stderr
    resumed = fit(tmp_path / "killed", kind, *options, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3 " in resumed.stdout
    one, other = tmp_path / "whole", tmp_path / "killed"
    assert_equal(trained(one / "run"), trained(other / "run"))
    assert curves(one / "run") == curves(other / "run")
    for rank in range(1 + bool(options)):
        assert steps(one, rank) == steps(other, rank)
        assert len(steps(one, rank)) >= 8
