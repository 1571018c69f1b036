"""The network, compiled."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_ddpm.errors import UserError


class Compile(Callback):
    """Has torch.compile turn the network into kernels when it is first called, with gradients and without.

    In place, so that weights and checkpoints keep their names; training, validation and drawing, of whatever batch
    size, share what was compiled. That takes minutes before the first step.

    Args:
        backend, mode: as of torch.compile.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None) -> None:
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise UserError(f"there is no backend {backend!r} of torch.compile; there are {', '.join(known)}")
        self.backend, self.mode = backend, mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = pl_module.network
        assert isinstance(network, nn.Module)
        network.compile(backend=self.backend, mode=self.mode)
        compiled: Any = network._compiled_call_impl

        def call(*inputs: Tensor) -> Any:
            laid_out = [each.contiguous() for each in inputs]  # samplers repeat one t without memory of its own
            for each in laid_out:  # else another batch size would be another program
                torch._dynamo.maybe_mark_dynamic(each, 0)
            return compiled(*laid_out)

        network._compiled_call_impl = call

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = pl_module.network
        assert isinstance(network, nn.Module)
        network._compiled_call_impl = None
