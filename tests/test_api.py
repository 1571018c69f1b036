"""The Python API of ``import lightning_ddpm``: loaded when it is used, and equal to the command line."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.command_line import REPOSITORY
from PIL import Image

import lightning_ddpm
from lightning_ddpm.models.ddpm import DDPM

DIGITS = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_package_is_imported_without_torch_in_under_50_ms() -> None:
    program = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "import lightning_ddpm\n"
        "print(time.perf_counter() - start, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    seconds, modules = [], set()
    for _ in range(5):
        first, *names = run_python(program).split()
        seconds.append(float(first))
        modules.update(names)
    assert not modules & {"torch", "numpy", "pytorch_lightning", "lightning_fabric", "jsonargparse"}
    assert min(seconds) < 0.05


def test_every_public_name_is_imported_when_it_is_used() -> None:
    program = (
        "import lightning_ddpm as package\n"
        "for name in package.__all__:\n"
        "    assert name in dir(package) and name not in vars(package)\n"
        "    print(getattr(package, name).__name__)"
    )
    assert run_python(program).split() == list(lightning_ddpm.__all__)
    assert all(
        getattr(lightning_ddpm, each).__module__.startswith("lightning_ddpm.") for each in lightning_ddpm.__all__
    )


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lightning_ddpm' has no attribute 'no_such_name'"):
        lightning_ddpm.no_such_name  # noqa: B018


def test_python_generates_what_sample_writes(command, tmp_path) -> None:
    model = lightning_ddpm.load(DIGITS)
    assert isinstance(model, DDPM)
    images = lightning_ddpm.generate(model, n=8, seed=0)
    assert images.shape == (8, 1, 8, 8)
    assert images.dtype == torch.uint8
    status, _, err = command(
        "sample", "--ckpt", DIGITS, "--n", 8, "--seed", 0, "--out", tmp_path, "--accelerator", "cpu"
    )
    assert status == 0, err
    written = [np.asarray(Image.open(tmp_path / f"{index:06d}.png")) for index in range(8)]
    assert np.array_equal(images[:, 0], np.stack(written))
