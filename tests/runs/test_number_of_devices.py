"""A run is the same on any number of devices, if an optimizer step has the same number of images.

Two and four gloo ranks are compared with one process, over two epochs whose last step is short.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import TINY, quiet_trainer, tiny_model, tiny_network
from helpers.two_epochs import PLAIN, STEP, STEPS, Record, SaveAt, SomeDigits
from pytorch_lightning import LightningModule
from torch import Tensor

from lightning_ddpm.callbacks.resume import Resume
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.diffusion import Cosine, LossAwareTimesteps, TimestepSampler
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.networks import UNetEncoder


def make_ddpm(timesteps: TimestepSampler | None = None, dropout: float = 0.0) -> LightningModule:
    network = tiny_network(classes=10, dropout=dropout)
    return tiny_model(network=network, timesteps=timesteps, label_dropout=0.3, schedule=Cosine(8), **PLAIN)


def make_classifier() -> LightningModule:
    torch.manual_seed(0)
    return NoisyClassifier(UNetEncoder(**TINY, classes=10, dropout=0.0), Cosine(20), **PLAIN)


def train(
    folder: Path,
    model: LightningModule,
    devices: int,
    batch_size: int,
    steps: int = STEPS,
    ckpt_path: Path | None = None,
    **arguments: Any,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train for two epochs with flips; return the weights, and the metrics of all steps and of the validation."""
    path = folder / f"{devices}x{batch_size}.json"
    arguments = {"global_batch_size": STEP} | arguments
    data = ImageDataModule(SomeDigits(), batch_size=batch_size, flip=True, **arguments)
    ranks: dict[str, Any] = {"devices": devices, "strategy": "ddp_spawn"} if devices > 1 else {}
    trainer = quiet_trainer(
        folder,
        max_steps=steps,
        limit_val_batches=1.0,
        check_val_every_n_epoch=2,
        callbacks=[Record(path), SaveAt(7, folder / "seven.ckpt"), Resume({})],
        **ranks,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return {name: each.detach() for name, each in model.state_dict().items()}, json.loads(path.read_text())


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any], steps: int = STEPS) -> None:
    assert one[0].keys() == other[0].keys()
    for name, weight in one[0].items():
        torch.testing.assert_close(
            other[0][name], weight, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert len(one[1]) == len(other[1]) == steps + 1
    for step, (first, second) in enumerate(zip(one[1], other[1], strict=True)):
        assert first == pytest.approx(second, abs=2e-6), f"step {step}"


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


MODELS: dict[str, Callable[[], LightningModule]] = {
    "uniform t": make_ddpm,
    "loss-aware t": lambda: make_ddpm(LossAwareTimesteps(history=1)),
    "classifier": make_classifier,
}


@pytest.mark.parametrize("name", MODELS)
def test_accumulated_batches_take_the_steps_of_one_batch(name: str, tmp_path: Path) -> None:
    whole, parts = (train(tmp_path, MODELS[name](), 1, batch_size) for batch_size in (64, 16))
    assert_same(whole, parts)
    start = MODELS[name]().state_dict()
    assert max(float((whole[0][key] - start[key]).abs().max()) for key in start) > 0.01, "nothing was trained"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices", "batch_size"), [("uniform t", 2, 32), ("loss-aware t", 4, 8), ("classifier", 2, 32)]
)
def test_several_ranks_take_the_steps_of_one(name: str, devices: int, batch_size: int, tmp_path: Path) -> None:
    assert_same(train(tmp_path, MODELS[name](), 1, 64), train(tmp_path, MODELS[name](), devices, batch_size))


@pytest.mark.slow
def test_a_run_of_two_ranks_is_resumed_on_one_with_the_same_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole", make_ddpm(), 1, 64)
    train(tmp_path, make_ddpm(), 2, 32, steps=7, global_batch_size=None)
    ckpt_path = tmp_path / "seven.ckpt"
    resumed = train(tmp_path, make_ddpm(), 1, 32, ckpt_path=ckpt_path, global_batch_size=None)
    assert "kept: 64 images in a step, as in the checkpoint's run (1 x 2 batches of 32)" in capsys.readouterr().out
    assert_same((whole[0], whole[1][7:]), resumed, STEPS - 7)


@pytest.mark.slow
def test_two_ranks_are_bit_equal_to_two_accumulated_batches_with_dropout_too(tmp_path: Path) -> None:
    """A sum of two terms has one order, and a half is exact; all steps before the short one have batches of 32."""

    def model() -> LightningModule:
        return make_ddpm(LossAwareTimesteps(history=1), dropout=0.3)

    one, two = (train(tmp_path, model(), devices, 32, steps=9) for devices in (1, 2))
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    assert [each["train/loss"] for each in two[1]] == pytest.approx([each["train/loss"] for each in one[1]], abs=1e-6)
    undropped = train(tmp_path, make_ddpm(LossAwareTimesteps(history=1)), 1, 32, steps=9)
    assert not all(torch.equal(one[0][name], undropped[0][name]) for name in one[0])
