"""Interrupted sampling resumes to the same set, and refuses the images of another set."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest
from helpers.command_line import REPOSITORY
from helpers.command_outputs import write_noise_image
from helpers.images import stacked
from helpers.tiny import tiny_model

from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.distributed import Ranks

CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
SET = ("--ckpt", CKPT, "--n", "50", "--batch_size", "8", "--steps", "2", "--seed", "5", "--accelerator", "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a set that was sampled without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    words = [sys.executable, "-m", "lightning_ddpm", "sample", *map(str, SET), "--out", str(folder)]
    subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_partial_set_is_completed_by_its_missing_batches_only(whole, command, tmp_path):
    shutil.copytree(whole, tmp_path / "part")
    for index in (9, 30, 49):
        (tmp_path / "part" / f"{index:06d}.png").unlink()
    (tmp_path / "part" / ".000009.png.01abcdef").write_bytes(b"half an image")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "part").glob("0*.png")}
    status, out, err = command("sample", *SET, "--out", tmp_path / "part")
    assert status == 0, err
    assert "32 of them are in" in out  # the batches of 8 that start at 8, 24 and 48 are incomplete
    assert f"wrote 18 images and grid.png in {tmp_path / 'part'}: 2 network evaluations each" in out
    assert contents(tmp_path / "part") == contents(whole)
    untouched = [*range(8), *range(16, 24), *range(32, 48)]
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "part").glob("0*.png")}
    assert [index for index in range(50) if now[f"{index:06d}.png"] == before.get(f"{index:06d}.png")] == untouched


def test_damaged_images_are_generated_again(whole, command, tmp_path):
    """What a failure of the machine can leave: a file cut off, one without content, one of other pixels; and a link."""
    folder, elsewhere = tmp_path / "damaged", tmp_path / "elsewhere.png"
    shutil.copytree(whole, folder)
    first, second, third, fourth, fifth = (folder / f"{index:06d}.png" for index in (1, 9, 10, 30, 40))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(b"")
    pixels = bytearray(third.read_bytes())
    pixels[len(pixels) // 2] ^= 1
    third.write_bytes(pixels)
    write_noise_image(fourth, (9, 9), "L")
    elsewhere.write_bytes(fifth.read_bytes())
    fifth.unlink()
    fifth.symlink_to(elsewhere)
    (folder / "grid.png").unlink()
    (folder / "grid.png").symlink_to(elsewhere)
    kept = elsewhere.read_bytes()
    status, out, err = command("sample", *SET, "--out", folder)
    assert status == 0, err
    assert f"5 damaged images in {folder} are generated again" in out
    assert contents(folder) == contents(whole)
    assert elsewhere.read_bytes() == kept
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_the_disk_is_waited_for_once_in_a_set(command, tmp_path, monkeypatch):
    calls = []
    for call in (os.fsync, os.sync):
        monkeypatch.setattr(os, call.__name__, lambda *words, call=call: [calls.append(call.__name__), call(*words)])
    status, _, err = command("sample", *SET, "--out", tmp_path / "set")
    assert status == 0, err
    assert calls.count("sync") == 1
    assert calls.count("fsync") <= 4  # set.json and grid.png, and their folder


def test_a_complete_set_is_not_changed(whole, command, tmp_path):
    shutil.copytree(whole, tmp_path / "again")
    status, out, err = command("sample", *SET, "--out", tmp_path / "again")
    assert status == 0, err
    assert "50 of them are in" in out
    assert "images/s" not in out
    assert f"\nwrote grid.png in {tmp_path / 'again'}" in out
    assert contents(tmp_path / "again") == contents(whole)


def test_a_set_can_be_extended(whole, command, tmp_path):
    for name, options in (("grown", ("--n", "20")), ("grown", ()), ("fresh", ())):
        status, _, err = command("sample", *SET, "--out", tmp_path / name, *options)
        assert status == 0, err
    assert contents(tmp_path / "grown") == contents(tmp_path / "fresh") == contents(whole)


@pytest.mark.slow
def test_sampling_after_a_kill_completes_the_same_set(command, tmp_path):
    options = (*SET, "--steps", "40")
    words = [sys.executable, "-m", "lightning_ddpm", "sample", *options, "--out", tmp_path / "killed"]
    process = subprocess.Popen([str(word) for word in words], cwd=REPOSITORY, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("0*.png"))) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    there = len(list((tmp_path / "killed").glob("0*.png")))
    assert 12 <= there < 50, "it was not interrupted in the middle, so that the test proves nothing"
    for name in "killed", "fresh":
        status, _, err = command("sample", *options, "--out", tmp_path / name)
        assert status == 0, err
    assert contents(tmp_path / "killed") == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--seed", "6"), "their seed is 5, requested is 6"),
        (("--steps", "3"), "their sampler is DDIM(steps=2"),
        (("--batch_size", "16"), "their batch_size is 8, requested is 16"),
        (("--sampler", "Heun"), "their sampler is DDIM(steps=2"),
    ],
    ids=str,
)
def test_images_of_another_set_are_refused_and_kept(option, message, whole, command):
    before = contents(whole)
    status, _, err = command("sample", *SET, "--out", whole, *option)
    assert status == 2
    assert "holds images of another set" in err
    assert message in err
    assert "empty it or choose another folder" in err
    assert contents(whole) == before


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_images_of_an_unknown_set_are_refused(content, whole, command, tmp_path):
    shutil.copytree(whole, tmp_path / "unknown")
    (tmp_path / "unknown" / "set.json").unlink()
    if content is not None:
        (tmp_path / "unknown" / "set.json").write_bytes(content)
    status, _, err = command("sample", *SET, "--out", tmp_path / "unknown")
    assert status == 2
    assert "holds images, and no set.json identifies their set; empty it or choose another folder" in err


def test_the_manifest_identifies_the_set(whole):
    manifest = json.loads((whole / "set.json").read_text())
    assert (manifest["seed"], manifest["batch_size"], manifest["weights"], manifest["device"]) == (5, 8, "EMA", "cpu")
    assert len(manifest["checkpoint"]) == 64
    assert manifest["sampler"].startswith("DDIM(steps=2")


def test_images_have_the_permissions_of_other_new_files(whole, tmp_path):
    (tmp_path / "new").touch()
    assert stat.S_IMODE((whole / "000000.png").stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_finished_batches_are_skipped_and_the_others_distributed(world_size):
    model = tiny_model()
    all_images = dict(
        enumerate(image for _, batch in generate_batches(model, SampleRequest(37, 1, 5)) for image in batch)
    )
    made = {}
    for rank in range(world_size):
        for (_, start, stop), pixels in generate_batches(
            model, SampleRequest(37, 1, 5), Ranks(rank, world_size), done={0, 15, 35}
        ):
            made |= dict(zip(range(start, stop), pixels, strict=True))
    missing = [*range(5, 15), *range(20, 35)]
    assert sorted(made) == missing
    assert (stacked(made) == stacked({index: all_images[index] for index in missing})).all()
