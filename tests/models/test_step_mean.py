"""An optimizer step is the mean over its images: of accumulated batches, short ones, and ranks with unequal batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.step_means import RATE, Scale, Unequal, scale_model
from helpers.tiny import quiet_trainer
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from lightning_ddpm.data import Digits, ImageDataModule, MemoryDataset
from lightning_ddpm.data.datasets import ImageDataset
from lightning_ddpm.diffusion import Cosine
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.utils.lightning_internals import count_validation_interval_in_steps


class FewDigits(Digits):
    """The first n digits to train on, of which every k-th has no label."""

    def __init__(self, n: int, unlabelled: int = 0) -> None:
        self.n, self.unlabelled = n, unlabelled

    def open(self, root: Path, split: Any) -> ImageDataset:
        images, labels = super().open(root, split).__getitems__(range(self.n))
        if self.unlabelled:
            labels[:: self.unlabelled] = -1
        return MemoryDataset(images, labels)


def descend(steps: list[Tensor]) -> Tensor:
    """Return the weight after gradient descent on the mean over the images (b, 1, 8, 8) of each step."""
    network = Scale()
    for x_0 in steps:
        loss = (network(x_0, x_0) - x_0.flip(-1)).square().mean()
        (gradient,) = torch.autograd.grad(loss, [network.weight])
        network.weight.data -= RATE * gradient
    return network.weight.detach()


class Watcher(Callback):
    """Records each step's images, and the loss that is logged for it."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = [[]]
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.steps[-1].append(batch[0])
        if trainer.global_step == len(self.steps):
            self.steps.append([])
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def images(self) -> list[Tensor]:
        return [torch.cat(step) for step in self.steps if step]


@pytest.mark.parametrize(
    ("n", "batch_size", "accumulate"), [(22, 4, 3), (24, 4, 3), (17, 4, 2), (13, 12, 5), (12, 4, 1)]
)
def test_a_step_of_accumulated_batches_is_one_step_of_all_their_images(
    n: int, batch_size: int, accumulate: int, tmp_path: Path
) -> None:
    model, watcher, data = scale_model(), Watcher(), ImageDataModule(FewDigits(n), batch_size=batch_size)
    trainer = quiet_trainer(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[watcher])
    trainer.fit(model, datamodule=data)
    steps = watcher.images()
    assert [len(step) for step in steps[: len(steps) // 2]] == [
        min(batch_size * accumulate, n - start) for start in range(0, n, batch_size * accumulate)
    ]
    torch.testing.assert_close(model.network.weight.detach(), descend(steps), rtol=1e-5, atol=1e-6)
    assert watcher.losses == pytest.approx(measure_losses(steps), rel=1e-5)


@torch.no_grad()
def measure_losses(steps: list[Tensor]) -> list[float]:
    """Return the mean loss over the images of each step, before it."""
    networks = zip(steps, trained_before(steps), strict=True)
    return [float((network(x_0, x_0) - x_0.flip(-1)).square().mean()) for x_0, network in networks]


def trained_before(steps: list[Tensor]) -> Iterator[Scale]:
    """Yield the network before each step."""
    for done in range(len(steps)):
        network = Scale()
        with torch.enable_grad():
            network.weight.data = descend(steps[:done])
        yield network


def test_nothing_is_multiplied_without_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled: list[object] = []
    monkeypatch.setattr(torch, "_foreach_mul_", lambda *tensors: scaled.append(tensors))
    quiet_trainer(tmp_path, max_epochs=1).fit(scale_model(), datamodule=ImageDataModule(FewDigits(10), batch_size=4))
    quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3).fit(
        scale_model(), datamodule=ImageDataModule(FewDigits(24), batch_size=4)
    )
    assert not scaled


class Logits(nn.Module):
    """A classifier of one linear layer, of clean images or of noisy ones, whose noise it ignores."""

    channels, size, classes = 1, 8, 10

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.layer(x.flatten(1) * 0 + 1)


def descend_logits(steps: list[Tensor]) -> Tensor:
    """Return the bias after gradient descent on the mean cross-entropy of the labels (b,) of each step."""
    layer = Logits().layer
    for label in steps:
        loss = functional.cross_entropy(layer(torch.ones(len(label), 64)), label)
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.data -= 0.1 * gradient
    return layer.bias.detach()


@pytest.mark.parametrize("kind", [ImageClassifier, NoisyClassifier])
def test_classifiers_take_the_mean_over_the_labelled_images_of_a_step(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"schedule": Cosine(10)} if kind is NoisyClassifier else {}
    model = kind(Logits(), optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1), **arguments)
    labels: list[Tensor] = []
    watcher = Callback()
    watcher.on_train_batch_end = lambda *arguments: labels.append(arguments[3][1])  # type: ignore[method-assign]
    source = FewDigits(22, unlabelled=3 if kind is NoisyClassifier else 0)
    trainer = quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3, callbacks=[watcher])
    trainer.fit(model, datamodule=ImageDataModule(source, batch_size=4))
    steps = [torch.cat(labels[start : start + 3]) for start in (0, 3)]
    assert [len(step) for step in steps] == [12, 10]
    expected = descend_logits([step[step >= 0] for step in steps])
    torch.testing.assert_close(model.network.layer.bias.detach(), expected, rtol=1e-5, atol=1e-6)


# ranks


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_gloo_ranks_with_unequal_batches_take_the_step_of_all_their_images(accumulate: int, tmp_path: Path) -> None:
    model, data = scale_model(), Unequal()
    trainer = quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate, devices=2, strategy="ddp_spawn")
    trainer.fit(model, datamodule=data)
    (first, second) = ([images for images, _ in data.batches(rank)] for rank in (0, 1))
    groups = [(0, 1), (2,)] if accumulate == 2 else [(0,), (1,), (2,)]
    steps = [torch.cat([each[i] for i in group for each in (first, second)]) for group in groups]
    assert [len(step) for step in steps] == ([14, 3] if accumulate == 2 else [7, 7, 3])
    torch.testing.assert_close(model.network.weight.detach(), descend(steps), rtol=1e-5, atol=1e-6)


# intervals


class Validations(Callback):
    """Records the step of each validation, and whether it came inside one."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert not trainer.fit_loop._should_accumulate(), "a validation inside a step"
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("accumulate", "every_n_epochs", "expected"), [(3, None, [2, 4, 6, 8]), (3, 1, [2, 5, 8]), (1, None, [2, 4, 6, 8])]
)
def test_val_check_interval_counts_optimizer_steps(
    accumulate: int, every_n_epochs: int | None, expected: list[int], tmp_path: Path
) -> None:
    """With 7 batches an epoch, accumulated in threes, an epoch has three steps: of 3, 3 and 1 batches."""
    validations = Validations()
    trainer = quiet_trainer(
        tmp_path,
        max_steps=9,
        accumulate_grad_batches=accumulate,
        val_check_interval=2,
        check_val_every_n_epoch=every_n_epochs,
        limit_val_batches=1,
        callbacks=[validations],
    )
    count_validation_interval_in_steps(trainer)
    trainer.fit(scale_model(), datamodule=ImageDataModule(FewDigits(28), batch_size=4))
    assert validations.steps == expected
