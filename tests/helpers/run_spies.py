"""Callbacks and data that record interrupted runs; the tests' configs name them by class_path."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.data import Digits, Shards
from lightning_ddpm.data.datasets import Batch, ImageDataset, MemoryDataset
from lightning_ddpm.data.sources import Split
from lightning_ddpm.diffusion import DDIM, Sampler
from lightning_ddpm.utils.condition import as_condition


class NumberedDigits(Digits):
    """The first ``n`` digits; the label of a training image is its index."""

    def __init__(self, n: int = 40) -> None:
        self.n = n

    def open(self, root: Path, split: str) -> ImageDataset:
        whole = super().open(root, split)
        images, _ = whole.__getitems__(range(self.n))
        return MemoryDataset(images, torch.arange(self.n))

    def class_names(self, root: Path) -> list[str]:
        return [str(index) for index in range(self.n)]


class StreamedShards(Shards):
    """Tar files whose images are read at every access, although they would fit into memory."""

    def open(self, root: Path, split: Split) -> ImageDataset:
        return Streamed(super().open(root, split))


class Streamed(ImageDataset):
    """A dataset that nothing decodes beforehand."""

    def __init__(self, data: ImageDataset) -> None:
        self.data, self.labels, self.fingerprint = data, data.labels, data.fingerprint

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.data.__getitems__(indices)


class Diary(Callback):
    """Writes a line for each event of training into ``rank-0.jsonl`` and so on, immediately.

    Args:
        folder: folder of the files.
        kill_at: number of the optimizer step after which the signal is sent.
        signal_name: the signal.
        rank: the rank that receives it.
    """

    def __init__(self, folder: str, kill_at: int | None = None, signal_name: str = "SIGKILL", rank: int = 0) -> None:
        self.folder, self.kill_at, self.signal, self.rank = Path(folder), kill_at, signal.Signals[signal_name], rank

    def note(self, trainer: Trainer, what: str, value: Any = None) -> None:
        with (self.folder / f"rank-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, what, value]) + "\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.note(trainer, "start")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        condition = as_condition(batch[1])
        assert condition.label is not None
        self.note(trainer, "batch", [trainer.current_epoch, batch_idx, *condition.label.tolist()])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.kill_at and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signal)
            time.sleep(0.01)  # for the handler to run

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.note(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, "epoch end", trainer.current_epoch)


def diary(folder: Path, rank: int = 0) -> list[list[Any]]:
    """Return the events that a rank wrote: [step, what, value]."""
    return [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]


def steps(folder: Path, rank: int = 0) -> dict[int, list[Any]]:
    """Return the batches and validations of each step, as the last process that did the step recorded them."""
    done: dict[int, list[Any]] = {}
    for step, what, value in diary(folder, rank):
        if what == "start":
            done = {each: happened for each, happened in done.items() if each < step} | {step: done.get(step, [])}
            # What followed this step's checkpoint is repeated; the step's validation came before it.
            done[step] = [each for each in done[step] if each[0] == "validation"]
        else:
            done.setdefault(step, []).append((what, value))
    return done


def first_epoch(*ranks: dict[int, list[Any]]) -> list[int]:
    """Return the sorted indices of the images that the ranks saw in the first epoch."""
    batches = [value for done in ranks for happened in done.values() for what, value in happened if what == "batch"]
    return sorted(number for epoch, _, *numbers in batches if epoch == 0 for number in numbers)


class Fails(Callback):
    """Raises an exception after a step on one rank, and records the time."""

    def __init__(self, step: int, rank: int, folder: str) -> None:
        self.step, self.rank, self.folder = step, rank, Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            (self.folder / "failed-at").write_text(str(time.time()))
            raise ArithmeticError("on this rank alone")


class SignalAt(Callback):
    """Sends signals to this process, or to its whole group, when a hook is called first, and then waits.

    Args:
        hook: the hook, such as ``on_fit_start``.
        names: the signals, a moment apart.
        seconds: how long it waits; the process should not live so long.
        rank: the rank that does this.
        group: whether all processes of the group get the signals, as from a terminal.
        workers: how workers of data loaders are started.
    """

    def __init__(
        self,
        hook: str,
        names: list[str],
        seconds: float = 0.0,
        rank: int = 0,
        group: bool = False,
        workers: str | None = None,
    ) -> None:
        if workers:
            multiprocessing.set_start_method(workers, force=True)

        def send(trainer: Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_rank != rank or self.sent:
                return
            self.sent = True
            for name in names:
                (os.killpg if group else os.kill)(0 if group else os.getpid(), signal.Signals[name])
                time.sleep(0.3)  # for the handlers to run
            time.sleep(seconds)

        self.sent = False
        setattr(self, hook, send)


class InterruptedDDIM(Sampler):
    """DDIM that sends SIGTERM to a process as it begins a second batch, in the first set of images that it generates.

    Args:
        steps: see DDIM.
        marker: file that is made then; if it exists, nothing is sent.
        rank: the rank that gets the signal.
    """

    def __init__(self, steps: int, marker: str, rank: int = 0) -> None:
        self.ddim, self.marker, self.rank, self.batches = DDIM(steps), Path(marker), rank, 0

    def nfe(self, T: int) -> int | None:
        return self.ddim.nfe(T)

    def trajectory(self, *arguments: Any, **keywords: Any) -> Iterator[torch.Tensor]:
        self.batches += 1
        if self.batches == 2 and int(os.environ.get("LOCAL_RANK", 0)) == self.rank and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # for the handler to run
        return self.ddim.trajectory(*arguments, **keywords)
