"""Where results are to be written is checked before the work for them."""

import os
import shutil

import numpy as np
import pytest
from helpers.command_line import REPOSITORY, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence, write_noise_image

WEIGHTS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


@pytest.fixture
def inputs(tmp_path):
    """Returns a folder with a checkpoint, images, statistics, folders by the names of results, a file and a pipe."""
    shutil.copy(WEIGHTS, tmp_path / "model.ckpt")
    for index in range(2):
        write_noise_image(tmp_path / "images" / f"{index}.png", (8, 8), "L")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    (tmp_path / "folder.json").mkdir()
    for name in ("grid.png", "set.json", "metrics.json"):
        (tmp_path / f"with_{name}" / name).mkdir(parents=True)
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe.json")
    write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    return tmp_path


EVALUATE = "evaluate --images images --extractor DigitsFeatures"
SAMPLE = "sample --ckpt model.ckpt --n 2 --steps 2"
RESTORE = "restore --task denoise --sigma 0.1 --ckpt model.ckpt --images images"


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
        ("fit --config config.yaml --trainer.default_root_dir=", "a path is empty"),
        (f"{SAMPLE} --out file", "file is a file, and a folder is needed in its place"),
        (f"{SAMPLE} --out file/samples", "cannot write in file/samples"),
        (f"{SAMPLE} --out images", "images holds images already, such as 0.png"),
        (f"{SAMPLE} --out with_grid.png", "--out must be a file, and with_grid.png/grid.png is a folder"),
        (f"{SAMPLE} --out with_set.json", "--out must be a file, and with_set.json/set.json is a folder"),
        (f"{RESTORE} --out with_metrics.json", "--out must be a file, and with_metrics.json/metrics.json is a folder"),
        (f"{RESTORE} --out file", "file is a file"),
        (f"{RESTORE} --out images", "holds images already"),
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


def test_a_link_in_place_of_a_result_is_replaced_and_never_followed(inputs, command, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "samples").mkdir()
    for link in ("samples/grid.png", "film.gif"):
        (inputs / link).symlink_to(inputs / "file")
    status, _, err = command(*f"{SAMPLE} --out samples --trajectory film.gif".split())
    assert status == 0, err
    assert (inputs / "file").read_text() == "kept"
    assert not any((inputs / link).is_symlink() for link in ("samples/grid.png", "film.gif"))
