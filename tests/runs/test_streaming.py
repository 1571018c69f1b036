"""A run on Parquet files that are streamed, by two ranks with two workers, is killed and resumed: every image once."""

import io
from pathlib import Path

import pytest
from helpers.command_line import TWO
from helpers.killed_runs import BATCH, fit_streamed
from helpers.run_results import assert_equal, trained
from helpers.run_spies import first_epoch, steps
from PIL import Image

from lightning_ddpm.data import Digits

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
N = 40


def write_parquet(folder: Path) -> Path:
    """Write 40 digits into two files of row groups of 3; the class of each is its number. Four more are held out."""
    folder.mkdir()
    images, _ = Digits().open(folder, "train").__getitems__(range(N + 4))
    features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
    for name, first, last in (("train-0", 0, 21), ("train-1", 21, N), ("test-0", N, N + 4)):
        files = [io.BytesIO() for _ in range(first, last)]
        for index, file in enumerate(files, first):
            Image.fromarray(images[index, 0].numpy()).save(file, "PNG")
        rows = {"image": [{"bytes": file.getvalue(), "path": None} for file in files]}
        rows["number"] = [index % N for index in range(first, last)]
        path = folder / f"{name}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
        parquet.write_table(parquet.read_table(path), path, row_group_size=3)
    return folder


def fit(folder: Path, data: Path, *options: object, kill_at: int | None = None):
    settings = {"name": str(data), "held_out": "test", "label": "number", "channels": 1, "size": 8}
    settings |= {"streaming": True, "shuffle_groups": 2}
    return fit_streamed(folder, {"class_path": "HuggingFace", "init_args": settings}, folder, *options, kill_at=kill_at)


@pytest.mark.slow
def test_two_ranks_with_two_workers_are_killed_and_resume_with_every_image_once(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "data")
    whole = fit(tmp_path / "whole", data, *TWO)
    assert whole.returncode == 0, whole.stderr
    killed = fit(tmp_path / "killed", data, *TWO, kill_at=5)
    assert killed.returncode != 0
    resumed = fit(tmp_path / "killed", data, *TWO, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3 " in resumed.stdout
    changes = [line for line in resumed.stdout.splitlines() if line.startswith("changed: ")]
    assert changes == ["changed: trainer.callbacks[2].init_args.kill_at was 5, is None"]
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        assert first_epoch(steps(folder, 0), steps(folder, 1)) == list(range(N))
    for rank in (0, 1):
        assert steps(tmp_path / "whole", rank) == steps(tmp_path / "killed", rank)
    assert_equal(trained(tmp_path / "whole" / "run"), trained(tmp_path / "killed" / "run"))


@pytest.mark.slow
def test_a_run_of_two_ranks_is_resumed_by_one_without_workers_at_the_next_image(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "data")
    killed = fit(tmp_path, data, *TWO, kill_at=5)
    assert killed.returncode != 0
    alone = ("--data.batch_size", 2 * BATCH, "--data.num_workers", 0, "--ckpt_path", "last")
    resumed = fit(tmp_path, data, *alone)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3 " in resumed.stdout
    second = {step: done for step, done in steps(tmp_path, 1).items() if step < 3}
    assert first_epoch(steps(tmp_path, 0), second) == list(range(N))
