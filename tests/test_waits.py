"""What a step reads back from the device, where the program would wait for it.

Counted on the CPU, by the operations that would wait on a GPU: a value taken to Python, a size that depends on values,
a number that is copied to the device.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tiny import quiet_trainer, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ddpm.callbacks import EMA, Checkpoints, NonFinite, ProgressLines
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import DDIM, Ancestral, DPMSolverPP, FixedLarge, Heun, Sampler
from lightning_ddpm.generation import evaluating

WAITS = {
    *(torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default),
    *(torch.ops.aten.equal.default, torch.ops.aten.masked_select.default, torch.ops.aten._unique2.default),
}


class Reads(TorchDispatchMode):
    """Which tensors were read, by where they lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            each.dtype is torch.bool for each in args[1] if each is not None
        )
        of_numbers = func is torch.ops.aten.lift_fresh.default and not args[0].ndim
        if func in WAITS or by_mask or of_numbers:
            self.tensors.append(args[0])
        return func(*args, **(kwargs or {}))


class ReadsOfSteps(Callback):
    """The reads of each step, but of what a GPU's run keeps on the host: the optimizer's and the average's counters."""

    def __init__(self) -> None:
        self.found: list[int] = []
        self.reads: Reads | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.end(trainer)
        self.reads = Reads()
        self.reads.__enter__()

    def end(self, trainer: Trainer) -> None:
        if self.reads is None:
            return
        self.reads.__exit__(None, None, None)
        counters = [state["step"] for state in trainer.optimizers[0].state.values()]
        counters += [each._average_model.n_averaged for each in trainer.callbacks if isinstance(each, EMA)]  # type: ignore[attr-defined]
        on_the_host = {each.data_ptr() for each in counters}
        self.found.append(sum(each.data_ptr() not in on_the_host for each in self.reads.tensors))


def test_a_training_step_reads_back_one_number_whether_the_gradient_is_finite(tmp_path: Path) -> None:
    reads = ReadsOfSteps()
    callbacks = [reads, EMA(), NonFinite(), Checkpoints(every_n_steps=1000), ProgressLines(1000)]
    settings = {
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1000,
        "enable_checkpointing": True,
        "enable_progress_bar": True,
    }
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=6, **settings)
    trainer.fit(tiny_model(), datamodule=ImageDataModule(Digits(), batch_size=16))
    reads.end(trainer)
    assert reads.found[1:5] == [1, 1, 1, 1]  # the first is logged, and the last saved


@pytest.mark.parametrize(
    "sampler", [Ancestral(FixedLarge()), DDIM(5), DDIM(5, eta=1.0), DPMSolverPP(5), Heun(5)], ids=str
)
def test_drawing_reads_nothing_back(sampler: Sampler) -> None:
    model = tiny_model()
    with evaluating(model), Reads() as reads:
        model.generate((0, 0, 4), sampler)
    assert reads.tensors == []
