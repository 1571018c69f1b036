"""Callbacks and data that record each rank of a distributed run; the tests' configs name them by class_path."""

import hashlib
import json
import os
from pathlib import Path

import torch
from pytorch_lightning import Callback

from lightning_ddpm.callbacks import BitsPerDim, Evaluation, Memorisation
from lightning_ddpm.callbacks.trainer_access import use_averaged_weights
from lightning_ddpm.data import Digits
from lightning_ddpm.diffusion.process import x_0_to_eps


def digest(tensors):
    """Return a hash of the values of named tensors."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


class RankSpy(Callback):
    """Writes rank-0.json, rank-1.json, ... into a folder: first images, t and noise, last weights, metrics."""

    def __init__(self, folder: str) -> None:
        self.folder, self.seen, self.batch = Path(folder), {}, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch
        if "eps" not in self.seen:
            self.handle = pl_module.network.register_forward_pre_hook(
                lambda network, inputs: self._see(pl_module, inputs)
            )

    def _see(self, module, inputs):
        x_t, t = inputs
        eps = x_0_to_eps(module.schedule, x_t, self.batch[0], t)
        self.seen["images"] = digest({"images": self.batch[0]})
        self.seen["t"], self.seen["eps"] = t.tolist(), eps.flatten()[:32].tolist()
        self.handle.remove()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == trainer.max_steps:
            self.seen["raw"] = digest(dict(pl_module.named_parameters()))
            with use_averaged_weights(trainer, pl_module):
                self.seen["ema"] = digest(dict(pl_module.named_parameters()))

    def teardown(self, trainer, pl_module, stage):
        self.seen["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        measured = (each.likelihoods for each in trainer.callbacks if isinstance(each, BitsPerDim))
        for name, each in (item for likelihoods in measured for item in likelihoods.items()):
            self.seen[name] = [each.n, each.mean, each.standard_error, each.prior, *each.terms.tolist()]
        for found in (each.proximity for each in trainer.callbacks if isinstance(each, Memorisation)):
            self.seen["proximity"] = found and [each.tolist() for each in found]
        self.seen["process"] = os.getpid()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(self.seen))


class ExchangeSpy(Callback):
    """Writes exchanges-0.json, ... into a folder: how often a step, after the first ones, calls each operation.

    Args:
        folder: the folder.
        steps: number of steps that are counted; the run has one more before and one after them.
    """

    def __init__(self, folder: str, steps: int = 4) -> None:
        self.folder, self.steps = Path(folder), steps
        self.profiler = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profiler.start()
        if batch_idx == 2 + self.steps:
            self.profiler.stop()
            counts = {each.key: each.count for each in self.profiler.key_averages() if each.key.startswith("c10d::")}
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"exchanges-{trainer.global_rank}.json").write_text(json.dumps(counts))


class WatchedDigits(Digits):
    """The digits; creates a file ``prepare-<process>`` or ``open-<process>`` when they are prepared or opened."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def _note(self, what: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{what}-{os.getpid()}").touch()

    def prepare(self, root: Path) -> None:
        assert not list(self.folder.glob("open-*")), "a rank opened it before it was prepared"
        self._note("prepare")

    def open(self, root, split):
        self._note("open")
        return super().open(root, split)


def weights(path):
    """Return the hashes of a checkpoint's averaged and raw weights, as :class:`RankSpy` records them."""
    checkpoint = torch.load(path, weights_only=True)
    return {"ema": digest(checkpoint["state_dict"]), "raw": digest(checkpoint["current_model_state"])}


class RankClock(Callback):
    """Makes the ranks' clocks disagree: only the second forbids evaluations up to step 3, only the first the next."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        late = trainer.global_step == 3
        for each in trainer.callbacks:
            if isinstance(each, Evaluation) and each.interval:
                each.seconds = [1e9] if late == trainer.is_global_zero else []
