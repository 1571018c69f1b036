"""Where results are to be written is checked before the work for them."""

import os
import shutil

import numpy as np
import pytest
from helpers.command_line import REPOSITORY
from helpers.command_outputs import get_error_sentence, write_noise_image

WEIGHTS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


@pytest.fixture
def inputs(tmp_path):
    """Returns a folder with a checkpoint, images, statistics, a folder, a file and a pipe."""
    shutil.copy(WEIGHTS, tmp_path / "model.ckpt")
    for index in range(2):
        write_noise_image(tmp_path / "images" / f"{index}.png", (8, 8), "L")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path


EVALUATE = "evaluate --images images --extractor DigitsFeatures"
SAMPLE = "sample --ckpt model.ckpt --n 2 --steps 2"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (f"{EVALUATE} --out folder.json", "--out must be a file, and folder.json is a folder"),
        (f"{EVALUATE} --out result.txt", "--out must be a file name that ends in .json, got result.txt"),
        (f"{EVALUATE} --out model.ckpt", "--out must be a file name that ends in .json, got model.ckpt"),
        (f"{EVALUATE} --out pipe.json", "--out pipe.json is a device or a pipe"),
        (f"{EVALUATE} --out file/result.json", "file is a file, and a folder is needed in its place"),
        (f"{EVALUATE} --out /proc/x/result.json", "cannot write in /proc/x"),
        (f"{EVALUATE} --save_stats stats", "--save_stats must be a file name that ends in .npz, got stats"),
        (f"{EVALUATE} --reference stats.npz --save_stats ./stats.npz", "--save_stats stats.npz is read by the command"),
        (f"{SAMPLE} --out samples --trajectory film.mp4", "--trajectory must be a file name that ends in .gif"),
        (f"{SAMPLE} --out samples --trajectory images", "--trajectory must be a file, and images is a folder"),
        (f"{SAMPLE} --out file", "file is a file, and a folder is needed in its place"),
        (f"{SAMPLE} --out file/samples", "cannot write in file/samples"),
        ("restore --task denoise --sigma 0.1 --ckpt model.ckpt --images images --out file", "file is a file"),
        ("restore --task denoise --sigma 0.1 --ckpt model.ckpt --images images --out images", "holds images already"),
        ("export --ckpt model.ckpt --format diffusers --out file", "file is a file"),
        ("export --ckpt model.ckpt --format diffusers --out images", "images is not empty"),
        ("import --folder images --out images", "--out must be a file, and images is a folder"),
        ("import --folder images --out model.bin", "--out must be a file name that ends in .ckpt"),
        ("import --folder images --out model.ckpt", "model.ckpt exists already"),
    ],
)
def test_a_place_that_cannot_take_the_result_is_refused_before_the_work(line, part, inputs, command, monkeypatch):
    monkeypatch.chdir(inputs)
    before = sorted(inputs.rglob("*.*"))
    status, out, err = command(*line.split())
    assert part in get_error_sentence(status, err)
    assert out == ""  # no work has begun
    assert sorted(inputs.rglob("*.*")) == before
    assert (inputs / "file").read_text() == "kept"


def test_missing_folders_of_results_are_created(inputs, command, monkeypatch):
    monkeypatch.chdir(inputs)
    status, _, err = command(*f"{SAMPLE} --out a/b/samples --trajectory c/d/film.GIF".split())
    assert status == 0, err
    assert (inputs / "c" / "d" / "film.GIF").is_file()
    status, _, err = command(*f"{EVALUATE} --save_stats e/f/stats.npz --out g/h/result.json".split())
    assert status == 0, err
    assert (inputs / "e" / "f" / "stats.npz").is_file()
    assert (inputs / "g" / "h" / "result.json").is_file()
