"""A run on tar files, by two ranks with two workers each, is killed and resumed: every image once an epoch."""

import io
import tarfile
from pathlib import Path

import pytest
from helpers.command_line import TWO
from helpers.killed_runs import fit_streamed
from helpers.run_results import assert_equal, trained
from helpers.run_spies import first_epoch, steps
from PIL import Image

from lightning_ddpm.data import Digits

N = 40


def write_shards(folder: Path) -> Path:
    """Write 40 digits into five tar files; the class of each is its number. Four more are held out."""
    folder.mkdir()
    images, _ = Digits().open(folder, "train").__getitems__(range(N + 4))
    for shard, first in enumerate(range(0, N + 4, 8)):
        with tarfile.open(folder / ("held_out.tar" if first == N else f"{shard}.tar"), "w") as tar:
            for index in range(first, min(first + 8, N + 4)):
                file = io.BytesIO()
                Image.fromarray(images[index, 0].numpy()).save(file, "PNG")
                for suffix, content in (("png", file.getvalue()), ("cls", b"%d" % (index % N))):
                    member = tarfile.TarInfo(f"{index:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def fit(folder: Path, shards: Path, *options: object, kill_at: int | None = None):
    settings = {"train": "{0..4}.tar", "held_out": "held_out.tar", "label": "cls", "channels": 1, "size": 8}
    source = {"class_path": "helpers.run_spies.StreamedShards", "init_args": settings}
    return fit_streamed(folder, source, shards, *TWO, *options, kill_at=kill_at)


@pytest.mark.slow
def test_two_ranks_with_two_workers_are_killed_and_resume_with_every_image_once(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    whole = fit(tmp_path / "whole", shards)
    assert whole.returncode == 0, whole.stderr
    killed = fit(tmp_path / "killed", shards, kill_at=5)
    assert killed.returncode != 0
    resumed = fit(tmp_path / "killed", shards, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 3 " in resumed.stdout
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        assert first_epoch(steps(folder, 0), steps(folder, 1)) == list(range(N))
    for rank in (0, 1):
        assert steps(tmp_path / "whole", rank) == steps(tmp_path / "killed", rank)
    assert_equal(trained(tmp_path / "whole" / "run"), trained(tmp_path / "killed" / "run"))
