"""A run on streamed data that writes down the images of every step, and may be killed at one."""

import subprocess
from pathlib import Path
from typing import Any

from helpers.command_line import REPOSITORY, callback, ddpm, tiny_digits, write_yaml

BATCH = 4
"""Images of a rank's batch."""


def fit_streamed(
    folder: Path, source: Any, root: Path, *options: object, kill_at: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Train the tiny digits' model on a source for 12 steps by two workers a rank.

    Args:
        folder: of the run and of what was seen.
        source: as in a config.
        root: folder of the data.
        options: of the command line.
        kill_at: step at which rank 1 is killed.
    """
    made = tiny_digits(folder / "run")
    callbacks = made["trainer"]["callbacks"]
    callback(made, "Checkpoints").update(every_n_steps=3, monitor=None)
    made["trainer"]["callbacks"] = [each for each in callbacks if each["class_path"].endswith(("EMA", "Checkpoints"))]
    spy = {"folder": str(folder), "kill_at": kill_at, "rank": 1}
    made["trainer"]["callbacks"].append({"class_path": "helpers.run_spies.Diary", "init_args": spy})
    made["trainer"].update(max_steps=12, limit_val_batches=0)
    made["data"].update(source=source, root=str(root), batch_size=BATCH, num_workers=2)
    file = write_yaml(folder / "config.yaml", made)
    return ddpm("fit", "--config", file, *options, PYTHONPATH=f"{REPOSITORY}:{REPOSITORY / 'tests'}")
