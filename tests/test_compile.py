"""torch.compile as one switch: the same numbers, the same checkpoint, one program for all batch sizes."""

from pathlib import Path

import pytest
import torch
from tiny import quiet_trainer, tiny_model
from torch._dynamo.utils import counters

from lightning_ddpm.callbacks import EMA, Compile, SampleGrid
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.errors import UserError


def fit(folder: Path, compile_: Compile | None):
    """Three steps, pictures after each and a validation, of four batch sizes; the checkpoint's weights."""
    callbacks = [EMA(0.9), SampleGrid(n=20, every_n_steps=1), *([compile_] if compile_ else [])]
    model = tiny_model()
    trainer = quiet_trainer(folder, callbacks=callbacks, max_steps=3, val_check_interval=3, limit_val_batches=1.0)
    trainer.fit(model, ImageDataModule(Digits(), batch_size=40))
    trainer.save_checkpoint(folder / "last.ckpt")
    assert model.network._compiled_call_impl is None, "compiled after the run"
    return torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]


def test_each_use_is_compiled_once_for_all_batch_sizes_and_the_numbers_and_names_stay(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", None)
    torch.compiler.reset()
    counters.clear()
    compiled = fit(tmp_path / "compiled", Compile(backend="eager"))
    assert counters["stats"]["unique_graphs"] == 2, "one with gradients, one without"
    assert not counters["graph_break"]
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value)


def test_a_backend_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"there is no backend 'fast' of torch.compile; there are .*inductor"):
        Compile(backend="fast")
