"""ChannelsLast: the memory layout changes neither the results nor the checkpoints."""

from pathlib import Path

import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model
from torch import nn

from lightning_ddpm.callbacks import EMA, ChannelsLast
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.ddpm import DDPM

LAST = torch.channels_last


def fit(folder: Path, *callbacks: ChannelsLast, steps: int = 3, ckpt_path: Path | None = None) -> DDPM:
    """Train for some steps, with the callbacks after EMA, and write last.ckpt into the folder."""
    # with a large eps, rounding errors of zero gradients do not become steps
    model = tiny_model(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2, eps=1e-2, fused=True))
    for each in model.network.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0  # dropout chooses activations in memory order
    trainer = quiet_trainer(folder, callbacks=[EMA(0.5), *callbacks], max_steps=steps, gradient_clip_val=1.0)
    trainer.fit(model, ImageDataModule(Digits(), batch_size=16), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Return both weight sets and the optimizer's moments."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    (optimizer,) = content["optimizer_states"]
    moments = {f"{i}.{name}": value for i, state in optimizer["state"].items() for name, value in state.items()}
    raw = {f"raw.{name}": value for name, value in content["current_model_state"].items()}
    return content["state_dict"] | raw | moments  # type: ignore[no-any-return]


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


def test_weights_averages_and_moments_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    fit(tmp_path / "plain")
    last = fit(tmp_path / "last", ChannelsLast())
    layers = [each for each in last.network.modules() if isinstance(each, nn.Conv2d)]
    assert all(each.weight.is_contiguous(memory_format=LAST) for each in layers)
    found = checkpoint(tmp_path / "last")
    assert_close(checkpoint(tmp_path / "plain"), found)
    wide = [name for name, value in found.items() if value.ndim == 4 and value.shape[1] > 1 and value.shape[2] > 1]
    assert len(wide) > 40
    assert all(found[name].is_contiguous(memory_format=LAST) for name in wide)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three steps, then resume for three more."""
    folder = tmp_path_factory.mktemp("plain")
    fit(folder / "first")
    fit(folder / "second", steps=6, ckpt_path=folder / "first" / "last.ckpt")
    return folder


@pytest.mark.parametrize("before", [True, False])
def test_a_run_resumes_in_the_other_layout(plain: Path, tmp_path: Path, before: bool) -> None:
    """torch's fused CPU kernel silently mixes up the moments of neighbouring weights where layouts differ."""
    fit(tmp_path / "first", *([ChannelsLast()] if before else []))
    after = [] if before else [ChannelsLast()]
    fit(tmp_path / "second", *after, steps=6, ckpt_path=tmp_path / "first" / "last.ckpt")
    assert_close(checkpoint(plain / "second"), checkpoint(tmp_path / "second"))
