"""Exponential moving average of the weights, which are the ones to evaluate, sample with and publish.

The CIFAR-10 checkpoint of Ho et al. 2020 has FID 3.21 with it and 12.14 without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from lightning_ddpm.models.optimizer import match_memory_format
from lightning_ddpm.utils.errors import UserError


class EMA(WeightAveraging):
    """Sets average <- decay * average + (1 - decay) * weights after every optimizer step, for parameters only.

    The decay warms up as (1 + n) / (10 + n) over the n steps so far, so that the random initial weights do not linger;
    n is in the checkpoint. Validation uses the average, and so does any callback inside :meth:`use_average`, whatever
    the order of the callbacks. A checkpoint holds both weight sets; its ``state_dict`` is the average. After fit the
    module has the average.

    Args:
        decay: the value that the decay warms up to (Ho et al. 2020: 0.9999).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"the EMA's decay must lie in [0, 1), got {decay}; Ho et al. use 0.9999")
        self.decay = decay
        self._swapped = False
        super().__init__(use_buffers=False)

    @contextmanager
    def use_average(self, module: LightningModule) -> Iterator[None]:
        """Give the module the averaged weights inside the context and its own afterwards, also after an exception."""
        swapped = self._swapped
        self._swap(module, to_average=True)
        try:
            yield
        finally:
            self._swap(module, to_average=swapped)

    def update_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        """Average the last step's weights too, if this callback's own hook has not run yet."""
        if self._average_model is not None and not self._swapped:
            self.on_train_batch_end(trainer, module)

    def _swap(self, module: LightningModule, to_average: bool) -> None:
        """Give the module the averaged or its own weights, unless it has them already or there is no average."""
        if self._average_model is not None and self._swapped != to_average:
            self._swap_models(module)
            self._swapped = to_average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._swapped, self._latest_update_step = False, 0
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the module's device: Lightning created it before it moved the module there."""
        model = self._average_model
        assert model is not None
        average = model.module.to(pl_module.device)
        model.n_averaged = model.n_averaged.cpu()  # so that reading it waits for no device
        self._averages: list[Tensor] = list(average.parameters())
        self._weights: list[Tensor] = list(pl_module.parameters())
        match_memory_format(self._averages, self._weights)
        self._kept: list[Tensor] = list(average.buffers())
        self._buffers: list[Tensor] = list(pl_module.buffers())

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        model = self._average_model
        if model is None or trainer.global_step == self._latest_update_step:
            return
        self._latest_update_step, n = trainer.global_step, int(model.n_averaged)
        if n == 0:
            torch._foreach_copy_(self._averages, self._weights)
        else:
            torch._foreach_lerp_(self._averages, self._weights, 1 - min(self.decay, (1 + n) / (10 + n)))
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        model.n_averaged += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module, to_average=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module, to_average=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap(pl_module, to_average=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Swapped, not copied, so that a checkpoint written from here on still holds both sets.
        self._swap(pl_module, to_average=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None:
            return
        self.update_if_due(trainer, pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, current

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
