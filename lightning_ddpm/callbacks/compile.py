"""The network, compiled."""

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from lightning_ddpm.utils.compile import check_backend, compile_in_place, restore_eager


class Compile(Callback):
    """Has torch.compile turn the network into kernels when it is first called, with gradients and without.

    In place, so that weights and checkpoints keep their names; training, validation and drawing, of whatever batch
    size, share what was compiled. That takes minutes before the first step.

    Args:
        backend, mode: as of torch.compile.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None) -> None:
        check_backend(backend)
        self.backend, self.mode = backend, mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        compile_in_place(_network(pl_module), self.backend, self.mode)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        restore_eager(_network(pl_module))


def _network(module: LightningModule) -> nn.Module:
    network = module.network
    assert isinstance(network, nn.Module)
    return network
