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

    def __enter__(self) -> "Reads":
        self.to_list = Tensor.tolist  # what it does with a tensor of the CPU, no operation shows
        reads = self.tensors

        def noted(tensor: Tensor) -> Any:
            reads.append(tensor)
            return self.to_list(tensor)

        Tensor.tolist = noted  # type: ignore[method-assign]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *exception: object) -> None:
        Tensor.tolist = self.to_list  # type: ignore[method-assign]
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            each.dtype is torch.bool for each in args[1] if each is not None
        )
        of_numbers = func is torch.ops.aten.lift_fresh.default and not args[0].ndim
        if func in WAITS or by_mask or of_numbers:
            self.tensors.append(args[0])
        return func(*args, **(kwargs or {}))


class ReadsOfSteps(Callback):
    """The reads of each step, but of what a GPU's run has on the host: the average's counter, and what was sent there
    in the step before.
    """

    def __init__(self) -> None:
        self.found: list[int] = []
        self.looked_back = 0
        self.reads: Reads | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.end(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.sent = [each._before[1]._values for each in callbacks if isinstance(each, NonFinite) and each._before]
        self.reads = Reads()
        self.reads.__enter__()

    def end(self, trainer: Trainer) -> None:
        if self.reads is None:
            return
        self.reads.__exit__(None, None, None)
        counters = [each._average_model.n_averaged for each in trainer.callbacks if isinstance(each, EMA)]  # type: ignore[attr-defined]
        on_the_host = {each.data_ptr() for each in (*counters, *self.sent)}
        self.found.append(sum(each.data_ptr() not in on_the_host for each in self.reads.tensors))
        sent = {each.data_ptr() for each in self.sent}
        self.looked_back += sum(each.data_ptr() in sent for each in self.reads.tensors)


def test_a_training_step_reads_back_nothing_but_whether_the_one_before_was_finite(tmp_path: Path) -> None:
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
    assert reads.found[1:5] == [0, 0, 0, 0]  # the first is logged, and the last saved
    assert reads.looked_back == 5, "in every step but the first"


@pytest.mark.parametrize(
    "sampler", [Ancestral(FixedLarge()), DDIM(5), DDIM(5, eta=1.0), DPMSolverPP(5), Heun(5)], ids=str
)
def test_drawing_reads_nothing_back(sampler: Sampler) -> None:
    model = tiny_model()
    with evaluating(model), Reads() as reads:
        model.generate((0, 0, 4), sampler)
    assert reads.tensors == []
