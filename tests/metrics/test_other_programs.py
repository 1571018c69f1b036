"""The metrics of two folders equal those of the command lines of torch-fidelity and pytorch-fid."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers.command_line import ddpm, run
from helpers.tiny import real_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # three programs that run Inception on the CPU

N = 32


@pytest.fixture(scope="module")
def weights():
    return real_data("fid-inception-2015-12-05.pth")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders: airplanes and frogs of CIFAR-10."""
    root = tmp_path_factory.mktemp("folders")
    for name in "airplane", "frog":
        (root / name).mkdir()
        for path in sorted((real_data("cifar10") / "train" / name).glob("*.png"))[:N]:
            shutil.copy(path, root / name)
    return root / "airplane", root / "frog"


@pytest.fixture(scope="module")
def ours(folders, weights, tmp_path_factory):
    """The metrics that ``evaluate`` computes under two protocols."""
    out = tmp_path_factory.mktemp("ours") / "result.json"
    options = ("--metrics", "fid", "kid", "pr", "--weights_path", weights, "--protocols", "TF1", "TorchMetrics")
    ended = ddpm(
        *("evaluate", "--images", folders[0], "--reference", folders[1], *options, "--accelerator", "cpu"),
        *("--out", out),
        seconds=900,
    )
    assert ended.returncode == 0, ended.stderr
    return {name: metric["value"] for name, metric in json.loads(out.read_text())["metrics"].items()}


def test_fid_kid_precision_and_recall_equal_those_of_torch_fidelity(ours, folders, weights, tmp_path):
    options = ("--kid-subset-size", N, "--feature-layer-prc", "2048", "--feature-extractor", "inception-v3-compat")
    ended = run(
        *(Path(sys.executable).parent / "fidelity", "--input1", folders[0], "--input2", folders[1], "--cpu", "--json"),
        *("--fid", "--kid", "--prc", *options, "--feature-extractor-weights-path", weights, "--silent"),
        *("--cache-root", tmp_path),
        seconds=900,
    )
    assert ended.returncode == 0, ended.stderr
    theirs = json.loads(re.search(r"\{.*\}", ended.stdout, re.DOTALL)[0])
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["precision_inception"] == pytest.approx(theirs["precision"], rel=1e-3)
    assert ours["recall_inception"] == pytest.approx(theirs["recall"], rel=1e-3)


def test_the_fid_equals_pytorch_fid_s_within_its_documented_tolerance(ours, folders, weights, tmp_path):
    """Its README states 0.0009 of the value. Its resize equals that of TorchMetrics for images that are enlarged."""
    there = tmp_path / "hub" / "checkpoints"
    there.mkdir(parents=True)
    (there / "pt_inception-2015-12-05-6726825d.pth").symlink_to(Path(weights).resolve())
    options = ("--device", "cpu", "--num-workers", "0")
    ended = run(sys.executable, "-m", "pytorch_fid", *folders, *options, seconds=900, TORCH_HOME=tmp_path)
    assert ended.returncode == 0, ended.stderr
    theirs = float(re.search(r"FID: +([\d.]+)", ended.stdout)[1])
    assert ours["fid_torchmetrics"] == pytest.approx(theirs, rel=9e-4)
    assert ours["fid"] == pytest.approx(theirs, rel=1e-2)
