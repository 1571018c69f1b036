"""Read what commands write and print."""

import os
import pty
import subprocess
import sys
import threading

import numpy as np
from helpers.command_line import REPOSITORY
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_pixels(path):
    """Return the pixels of an image file as integers."""
    return np.asarray(Image.open(path)).astype(int)


def read_images(folder, n):
    """Return the first n sampled images of a folder (n, h, w[, c])."""
    return np.stack([read_pixels(folder / f"{index:06d}.png") for index in range(n)])


def read_losses(folder):
    """Return the logged training losses of a run as (step, loss)."""
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def read_files(folder):
    """Return the content of every file of a folder, by relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def get_error_sentence(status, err):
    """Return the error that a failed command printed: all from the only line that begins with ``error:``."""
    assert status not in (0, None)
    assert "Traceback" not in err
    lines = err.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1, err
    return "\n".join(lines[starts[0] :])


def write_noise_image(path, size=(12, 12), mode="RGB"):
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert(mode).save(path)


def run_on_terminal(*arguments):
    """Run a command on a terminal; return its status and what the terminal showed."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "lightning_ddpm", *(str(word) for word in arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown: list[bytes] = []

    def read():
        while True:
            try:
                shown.append(os.read(ours, 65536))
            except OSError:  # the terminal is closed: the process has ended
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        status = process.wait(timeout=240)
    finally:
        process.kill()
        reader.join(timeout=10)
        os.close(ours)
    return status, b"".join(shown).decode(errors="replace")
