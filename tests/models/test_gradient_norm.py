"""The norm of the gradients is computed once a step, and logged, checked and clipped with the bits of torch's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_spies import NumberedDigits
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lightning_ddpm.callbacks import NonFinite
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.optimizer import collect_gradients, get_gradient_norm

STEPS = 3


class ByTorch(Callback):
    """Clips the gradients as torch does, before the model measures them for its own clipping."""

    norms: list[torch.Tensor]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.norms = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.norms.append(nn.utils.clip_grad_norm_(pl_module.parameters(), 0.01))


class LogSpy(Callback):
    def __init__(self) -> None:
        self.norms: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.norms.append(trainer.callback_metrics["train/gradient_norm"])


def fit(folder: Path, *callbacks: Callback, **arguments: Any) -> DDPM:
    model = tiny_model()
    trainer = quiet_trainer(folder, callbacks=[*callbacks], max_steps=STEPS, log_every_n_steps=1, **arguments)
    trainer.fit(model, datamodule=ImageDataModule(NumberedDigits(40), batch_size=8))
    return model


@pytest.mark.parametrize("callbacks", [[], [NonFinite()]])
def test_one_norm_is_computed_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callbacks: list[Callback]
) -> None:
    computed: list[int] = []
    get_total_norm = nn.utils.get_total_norm

    def count(gradients: list[torch.Tensor]) -> torch.Tensor:
        computed.append(len(gradients))
        return get_total_norm(gradients)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the norm is computed a second time")

    monkeypatch.setattr(nn.utils, "get_total_norm", count)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", refuse)
    model = fit(tmp_path, *callbacks, gradient_clip_val=0.01)
    assert computed == [len([*model.parameters()])] * STEPS


def test_weights_and_logged_norms_are_those_of_torchs_clipping(tmp_path: Path) -> None:
    logged, torchs = LogSpy(), ByTorch()
    ours = fit(tmp_path, NonFinite(), logged, gradient_clip_val=0.01)
    theirs = fit(tmp_path, torchs)
    assert same(weights(ours), weights(theirs))
    assert torch.equal(torch.stack(logged.norms), torch.stack(torchs.norms))
    assert min(torchs.norms) > 0.01


def test_gradients_that_were_changed_or_replaced_are_measured_again() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight])
    kept = get_gradient_norm(optimizer)
    assert get_gradient_norm(optimizer) is kept
    torch._foreach_mul_(collect_gradients(optimizer), torch.tensor(2.0))
    assert get_gradient_norm(optimizer) == pytest.approx(2 * 3**0.5)
    weight.grad = torch.full((3,), 4.0)
    assert get_gradient_norm(optimizer) == pytest.approx(4 * 3**0.5)


def test_values_are_clipped_by_lightning(tmp_path: Path) -> None:
    class Largest(Callback):
        values: float = 0

        def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
            gradients = collect_gradients(optimizer)
            self.values = max([self.values, *(float(each.abs().max()) for each in gradients)])

    largest = Largest()
    fit(tmp_path, NonFinite(), largest, gradient_clip_val=1e-3, gradient_clip_algorithm="value")
    assert largest.values == pytest.approx(1e-3)
