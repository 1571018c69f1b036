"""What commands write is never read as data, and names in any encoding are printed."""

import io
import os
import sys

import pytest
from helpers.command_line import REPOSITORY, tiny_digits, write_yaml
from helpers.command_outputs import get_error_sentence, write_noise_image
from PIL import Image

from lightning_ddpm.data import ImageFolder
from lightning_ddpm.data.sample_images import open_sample_folder
from lightning_ddpm.utils.errors import UserError

WEIGHTS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


@pytest.fixture
def project(tmp_path):
    """Returns a folder with four images in two classes and, among them, a run and what commands wrote."""
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/deep/2.png"):
        write_noise_image(tmp_path / name, (8, 8), "L")
    for name in (
        *("grid.png", "cats/side_by_side.png", "test_bits_per_dim.png"),
        *("run/samples/step-0000200.png", "run/predictions/000000.png", "stopped/samples/step-1.png"),
        *("logs/run/any.png", "sampled/000000.png", "dogs/sampled/000000.png"),
    ):
        write_noise_image(tmp_path / name, (24, 8), "L")
    for name in (
        *("run/last.ckpt", "stopped/.unsaved", "logs/run/events.out.tfevents.1.host.1.0"),
        *("sampled/set.json", "dogs/sampled/set.json"),
    ):
        (tmp_path / name).touch()
    return tmp_path


def test_a_dataset_has_its_own_images_only(project, command):
    source = ImageFolder(channels=1, size=8)
    assert source.class_names(project) == ["cats", "dogs"]
    names = source.image_files(project)[0].names
    assert [os.path.relpath(name, project) for name in names] == [
        *("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/deep/2.png")
    ]
    options = ("--data.source", "ImageFolder", "--data.source.size", "8", "--data.source.channels", "1")
    status, out, err = command("check-data", *options, "--data.root", project)
    assert status == 0, err
    assert "4 images can be used, 0 cannot" in out
    assert f"not read: {project / 'dogs' / 'sampled'}, {project / 'logs' / 'run'}, {project / 'run'} (5 in all)" in out
    assert len(open_sample_folder(project)) == 4


def test_output_beside_splits_is_no_image_outside_them(project, command):
    for split in ("train", "test"):
        (project / split).mkdir()
    for name in ("cats", "dogs"):
        (project / name).rename(project / "train" / name)
    write_noise_image(project / "test" / "1.png", (8, 8), "L")
    source = ImageFolder(channels=1, size=8)
    assert [len(source.open(project, split)) for split in ("train", "test")] == [4, 1]
    write_noise_image(project / "others" / "1.png", (8, 8), "L")
    with pytest.raises(UserError, match="images outside them, in others; move"):
        ImageFolder(channels=1, size=8).open(project, "train")  # a source lists its folder once


def test_an_animation_of_sampling_is_output_whatever_its_name(command, tmp_path):
    for index in range(4):
        write_noise_image(tmp_path / "a" / f"{index}.png", (8, 8), "L")
    Image.effect_noise((8, 8), 50).save(tmp_path / "a" / "own.gif")
    options = ("--n", "2", "--steps", "2", "--out", tmp_path / "sampled", "--trajectory", tmp_path / "a" / "film.gif")
    status, _, err = command("sample", "--ckpt", WEIGHTS, *options)
    assert status == 0, err
    names = ImageFolder(channels=1, size=8).image_files(tmp_path)[0].names
    assert [os.path.basename(name) for name in names] == ["0.png", "1.png", "2.png", "3.png", "own.gif"]


def test_the_folder_of_a_run_may_be_that_of_its_data(project):
    (project / "last.ckpt").touch()
    (project / "samples").mkdir()
    write_noise_image(project / "samples" / "step-1.png", (24, 8), "L")
    assert len(open_sample_folder(project)) == 4


def test_output_is_read_if_it_is_named_itself(project, command):
    write_noise_image(project / "sampled" / "000000.png", (8, 8), "L")
    assert len(open_sample_folder(project / "sampled")) == 1
    message = get_error_sentence(*command("evaluate", "--images", project / "logs")[::2])
    assert "is read only if it is named itself" in message


def test_what_restore_writes_can_be_evaluated_and_is_marked_as_output(command, tmp_path):
    for index in range(3):
        write_noise_image(tmp_path / "given" / f"{index}.png", (8, 8), "L")
    options = ("--ckpt", WEIGHTS, "--images", tmp_path / "given", "--steps", "2")
    status, _, err = command(
        "restore", "--task", "denoise", "--sigma", "0.2", *options, "--out", tmp_path / "given" / "restored"
    )
    assert status == 0, err
    assert (tmp_path / "given" / "restored" / "side_by_side.png").is_file()
    assert len(open_sample_folder(tmp_path / "given" / "restored")) == 3
    assert len(open_sample_folder(tmp_path / "given")) == 3


def test_names_that_are_not_utf_8(command, tmp_path, monkeypatch):
    odd = os.fsdecode(b"caf\xe9")
    for name in ("a", "b"):
        write_noise_image(tmp_path / "flat" / f"{odd}{name}.png", (8, 8), "L")
        write_noise_image(tmp_path / "classes" / f"{odd}{name}" / "1.png", (8, 8), "L")
    (tmp_path / "flat" / f"{odd} ü.png").write_bytes(b"no image")
    options = ("--data.source", "ImageFolder", "--data.source.size", "8", "--data.source.channels", "1")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        status, _, err = command("check-data", *options, "--data.root", tmp_path / "flat")
    assert status == 1, err
    printed.flush()
    lines = printed.buffer.getvalue().decode("ascii")
    assert r"caf\xe9 \xfc.png: " in lines
    assert "2 images can be used, 1 cannot" in lines
    message = get_error_sentence(*command("check-data", *options, "--data.root", tmp_path / "classes")[::2])
    assert r"the class folder caf\xe9a in " in message
    message = get_error_sentence(*command("check-data", *options, "--data.root", tmp_path / odd)[::2])
    assert r"caf\xe9 is not UTF-8" in message
    message = get_error_sentence(*command("sample", "--ckpt", WEIGHTS, "--out", tmp_path / odd)[::2])
    assert r"caf\xe9 is not UTF-8" in message


def test_a_config_is_read_as_utf_8(command, tmp_path):
    config = write_yaml(tmp_path / "config.yaml", tiny_digits(tmp_path / "run"))
    text = config.read_text() + "# café\n"
    for encoding in ("latin-1", "utf-16"):
        config.write_bytes(text.encode(encoding))
        message = get_error_sentence(*command("fit", "--config", config)[::2])
        assert f"{config} is not UTF-8 text: byte" in message
        assert "save it as UTF-8" in message
        status, _, err = command("evaluate", "--ckpt", WEIGHTS, "--n", "2", "--reference", config)
        assert "is not UTF-8 text" in get_error_sentence(status, err)
    config.write_bytes(text.encode("utf-8-sig"))
    status, out, err = command("fit", "--config", config, "--print_config")
    assert status == 0, err
    assert "max_steps: 4" in out
