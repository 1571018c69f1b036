"""Which files show that a folder holds a run, and which are never input."""

from pathlib import Path

import pytest

from lightning_ddpm.utils.run_files import find_checkpoint, find_run_file, is_output


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    "name",
    [
        "last.ckpt",
        "last-previous.ckpt",
        "best.ckpt",
        ".last.ckpt.before",
        ".unsaved",
        "epoch=3-step=9.ckpt",
        "lightning_logs/version_0/checkpoints/epoch=3-step=9.ckpt",
        "config.yaml",
        "events.out.tfevents.1700000000.host.1.0",
        "lightning_logs/version_0/events.out.tfevents.1700000000.host.1.0",
        "metrics.csv",
        "wandb/offline-run-1-x/run-x.wandb",
        "csv/version_2/metrics.csv",
        "hparams.yaml",
        "samples/step-0000200.png",
        "predictions/000000.png",
        "test_bits_per_dim.png",
    ],
)
def test_any_file_of_a_run_is_found(name: str, tmp_path: Path) -> None:
    assert find_run_file(tmp_path / "missing") is None
    touch(tmp_path / "run" / "slurm-12.out")
    touch(tmp_path / "run" / "data" / "cats" / "1.png")
    assert find_run_file(tmp_path / "run") is None
    path = touch(tmp_path / "run" / name)
    assert find_run_file(tmp_path / "run") == path
    assert find_checkpoint(tmp_path / "run") == (path if name.endswith(".ckpt") else None)


def test_a_run_in_a_folder_below_is_another_run(tmp_path: Path) -> None:
    touch(tmp_path / "ablation" / "last.ckpt")
    touch(tmp_path / "ablation" / "events.out.tfevents.1700000000.host.1.0")
    touch(tmp_path / "pretrained" / "digits.ckpt")
    assert find_run_file(tmp_path) is None


def test_the_checkpoint_that_a_run_starts_from_is_none_of_its_files(tmp_path: Path) -> None:
    imported = touch(tmp_path / "imported.ckpt")
    assert find_run_file(tmp_path) == imported
    assert find_run_file(tmp_path, ignored=imported) is None
    touch(tmp_path / "config.yaml")
    assert find_run_file(tmp_path, ignored=imported) == tmp_path / "config.yaml"


@pytest.mark.parametrize("name", ["last.ckpt", ".unsaved", "set.json", "events.out.tfevents.1.host.1.0"])
def test_a_folder_that_a_command_wrote_is_output(name: str) -> None:
    assert is_output(["000000.png", name])
    assert not is_output(["000000.png", "config.yaml", "metrics.csv"])
