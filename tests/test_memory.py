"""The memory of an evaluation does not grow with the number of images."""

import os
import subprocess
import sys

import pytest
from command_line import REPOSITORY

CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


def peak(n):
    """Maximum resident set of an evaluation of n images, as GNU time has it."""
    options = ("--steps", "1", "--extractor", "DigitsFeatures", "--reference", "Digits", "--accelerator", "cpu")
    words = [sys.executable, "-m", "lightning_ddpm", "evaluate", "--ckpt", str(CKPT), "--n", str(n), *options]
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs os.wait4")
def test_ten_times_the_images_take_at_most_5_per_cent_more_memory():
    assert peak(10_000) < 1.05 * peak(1000)
