"""The memory of an evaluation does not grow with the number of images."""

import sys

import pytest
from helpers.command_line import REPOSITORY, run
from torch import nn

from lightning_ddpm.metrics import ModuleFeatures

CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
PROGRAM = """
import sys
from benchmarks.report import peak_megabytes
from lightning_ddpm.commands.main import main
status = main(sys.argv[1:])
print(peak_megabytes(of_the_process=True))
sys.exit(status)
"""


class Wide(ModuleFeatures):
    """Features of 4 KB per image, so that keeping them would show: each pixel 16 times."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Upsample(scale_factor=4), nn.Flatten()), 1024, "wide")


def peak(n):
    """Return the peak memory of an evaluation of n images, in MB."""
    options = ("--steps", 1, "--extractor", "test_memory.Wide", "--reference", "Digits", "--accelerator", "cpu")
    words = [sys.executable, "-c", PROGRAM, "evaluate", "--ckpt", CKPT, "--n", n, *options]
    ended = run(*words, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}:{REPOSITORY / 'tests' / 'metrics'}")
    assert ended.returncode == 0, ended.stderr
    return float(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_thirty_times_the_images_take_no_more_memory():
    assert peak(30_000) - peak(1000) < 50, "their features alone are 119 MB"
