"""Compiles the network."""

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.utils.compile import check_backend, compile_in_place, restore_eager


class Compile(Callback):
    """Compiles the network with torch.compile at its first calls, with and without gradients.

    This is done in place, so that weights and checkpoints keep their names; training, validation and sampling share the
    compiled code for all batch sizes. Compilation takes minutes before the first step.

    Args:
        backend, mode: arguments of torch.compile.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None) -> None:
        check_backend(backend)
        self.backend, self.mode = backend, mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        compile_in_place(pl_module.get_submodule("network"), self.backend, self.mode)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        restore_eager(pl_module.get_submodule("network"))
