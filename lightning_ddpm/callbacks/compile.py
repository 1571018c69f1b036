"""Compiles the network."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils import compile as compilation
from lightning_ddpm.utils.compile import Mode, check_backend
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.lightning_internals import is_accumulating


class Compile(Callback):
    """Compiles the network with torch.compile at its first calls, with and without gradients.

    This is done in place, so that weights and checkpoints keep their names. Training compiles each batch size (with
    ``data.drop_last`` there is one); validation and sampling share one program for all batch sizes. Compilation takes
    minutes before the first step. On a GPU, use it together with :class:`ChannelsLast`.

    Args:
        backend: of torch.compile.
        mode: of torch.compile. "reduce-overhead" replays CUDA graphs, which helps where a step takes the GPU less time
            than the program needs to issue it, as with small batches; it takes more memory.
    """

    def __init__(self, backend: str = "inductor", mode: Mode | None = None) -> None:
        check_backend(backend)
        self.backend, self.mode = backend, mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile the network; refuse a module without one."""
        if not hasattr(pl_module, "network"):
            raise UserError(f"Compile compiles model.network, and {type(pl_module).__name__} has none; remove it")
        compilation.compile_in_place(pl_module.get_submodule("network"), self.backend, self.mode)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if compilation.uses_graphs(self.mode):
            compilation.begin_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy accumulated gradients out of the graph's memory, which the next batch uses again."""
        if compilation.uses_graphs(self.mode) and is_accumulating(trainer):
            for each in pl_module.parameters():
                each.grad = None if each.grad is None else each.grad.clone()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        compilation.restore_eager(pl_module.get_submodule("network"))
