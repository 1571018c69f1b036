"""NonFinite: steps whose loss or gradient is not finite."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_spies import NumberedDigits
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.precision import MixedPrecision

from lightning_ddpm.callbacks import EMA, Checkpoints, NonFinite
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.utils.errors import UserError


class Poison(Callback):
    """Makes the loss of one image of the batch, or the gradient, infinite or NaN at some steps."""

    def __init__(self, steps: range, where: str, value: float = math.nan) -> None:
        self.steps, self.where, self.value = steps, where, value
        self.weights: list[dict[str, torch.Tensor]] = []
        self.images: dict[int, int] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.weights.append(weights(pl_module))
        if self.where == "loss" and trainer.global_step in self.steps:
            batch[0][3] = self.value
            self.images[trainer.global_step + 1] = int(batch[1][3])

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.where == "gradient" and trainer.global_step in self.steps:
            next(iter(pl_module.parameters())).grad.view(-1)[0] = self.value


def fit(folder: Path, *callbacks: Callback, steps: int = 6, **arguments: Any) -> Trainer:
    trainer = quiet_trainer(folder, callbacks=list(callbacks), max_steps=steps, gradient_clip_val=1.0, **arguments)
    trainer.fit(tiny_model(), datamodule=ImageDataModule(NumberedDigits(40), batch_size=8))
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, value: float
) -> None:
    poison = Poison(range(2, 4), where, value)
    trainer = fit(tmp_path, poison, NonFinite())
    before, at_2, at_3, after, later = poison.weights[1:6]
    assert same(at_2, at_3)
    assert same(at_3, after)
    assert not same(before, at_2)
    assert not same(after, later)
    assert trainer.callback_metrics["train/steps_skipped"] == 2
    assert all(value.isfinite().all() for value in weights(trainer.lightning_module).values())
    out = capsys.readouterr().out
    assert "step 3 is skipped: its loss or gradient is not finite (1 in a row; 10 end the run)" in out
    assert "step 4 is skipped: its loss or gradient is not finite (2 in a row; 10 end the run)" in out
    counts = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert counts == {4}, "Adam counts the steps that it took"


def test_too_many_skipped_steps_in_a_row_end_the_run_with_a_valid_checkpoint(tmp_path: Path) -> None:
    poison = Poison(range(3, 99), "loss")
    with pytest.raises(UserError) as ended:
        fit(tmp_path, EMA(0.5), poison, NonFinite(3), Checkpoints(every_n_steps=1), steps=50, enable_checkpointing=True)
    message = str(ended.value)
    assert "3 steps in a row" in message
    assert "step 6 with learning rate 0.01" in message
    assert f"on rank 0 the loss of images {poison.images[6]} at t=" in message
    assert message.count(" at t=") == 1, "one image was bad"
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        assert all(value.isfinite().all() for value in last[part].values())


@pytest.mark.parametrize(("step", "steps"), [(5, 9), (6, 6)], ids=["of an epoch", "of the run"])
def test_the_last_step_is_reported_with_its_images(tmp_path: Path, step: int, steps: int) -> None:
    poison = Poison(range(step - 1, step), "loss")
    with pytest.raises(UserError, match=f"last of them step {step} with") as ended:
        fit(tmp_path, poison, NonFinite(1), steps=steps)
    assert f"on rank 0 the loss of images {poison.images[step]} at t=" in str(ended.value)


def test_the_next_checkpoint_counts_the_skipped_step(tmp_path: Path) -> None:
    kept = Checkpoints(every_n_steps=4)
    fit(tmp_path, Poison(range(3, 4), "loss"), NonFinite(), kept, steps=4, enable_checkpointing=True)
    counted = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["NonFinite"]
    assert counted == {"skipped": 1}


@pytest.mark.parametrize(
    ("optimizer", "skips_on_device"),
    [
        (partial(torch.optim.Adam, lr=1e-2, fused=True), True),
        (partial(torch.optim.AdamW, lr=1e-2, fused=True), True),
        (partial(torch.optim.Adam, lr=1e-2), False),
        (partial(torch.optim.SGD, lr=1e-2, momentum=0.9), False),
        (partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True), False),
    ],
    ids=["Adam, fused", "AdamW, fused", "Adam", "SGD", "SGD, fused"],
)
def test_every_optimizer_skips_the_first_step_and_a_later_one(
    tmp_path: Path, optimizer: Any, skips_on_device: bool
) -> None:
    """Optimizers that cannot skip a step get no gradients: with zero gradients, momentum would still move weights."""
    poison = Poison(range(0, 4, 3), "gradient")
    model = tiny_model(optimizer=optimizer)
    trainer = quiet_trainer(tmp_path, callbacks=[poison, NonFinite()], max_steps=6)
    trainer.fit(model, datamodule=ImageDataModule(NumberedDigits(40), batch_size=8))
    seen = [*poison.weights, weights(model)]
    assert [same(before, after) for before, after in pairwise(seen)] == [True, False, False, True, False, False]
    assert all(each.isfinite().all() for each in weights(model).values())
    assert hasattr(trainer.optimizers[0], "found_inf") is skips_on_device


def test_a_skipped_last_step_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Poison(range(5, 6), "loss"), NonFinite(), logger=logger)
    logger.save()
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    (column,) = (i for i, name in enumerate(rows[0].split(",")) if name == "train/steps_skipped")
    assert float(rows[-1].split(",")[column]) == 1


def test_a_run_that_a_signal_stops_reports_the_step_skipped_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stops(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 3:
                raise SystemExit(0)

    with pytest.raises(SystemExit):
        fit(tmp_path, Poison(range(2, 3), "loss"), NonFinite(1), Stops())
    assert "step 3 is skipped" in capsys.readouterr().out


def test_for_a_nonfinite_gradient_the_images_of_the_batch_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only the gradient, of a batch of images .* at t=") as ended:
        fit(tmp_path, Poison(range(99), "gradient"), NonFinite(2))
    assert str(ended.value).count(" at t=") == 8


def test_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Poison(range(0, 99, 2), "loss"), NonFinite(2), steps=8)
    assert trainer.global_step == 8
    assert trainer.callback_metrics["train/steps_skipped"] == 4


def test_one_of_several_accumulated_batches_invalidates_the_step_and_is_listed(tmp_path: Path) -> None:
    class Once(Poison):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    poison = Once(range(1), "loss")
    with pytest.raises(UserError) as ended:
        fit(tmp_path, poison, NonFinite(1), accumulate_grad_batches=3)
    assert f"the loss of images {poison.images[1]} at t=" in str(ended.value)


def half(scale: float) -> MixedPrecision:
    """16-mixed on the CPU, with torch's own gradient scaler."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def test_in_half_precision_the_scaler_handles_infinite_gradients_above_scale_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison, precision = Poison(range(2, 4), "gradient", math.inf), half(2.0**12)
    trainer = fit(tmp_path, poison, NonFinite(1), plugins=[precision])
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 2.0**10
    before, at_2, at_3, after, later = poison.weights[1:6]
    assert same(at_2, at_3)
    assert same(at_3, after)
    assert not same(before, at_2)
    assert not same(after, later)
    assert trainer.global_step == 6
    assert "is skipped" not in capsys.readouterr().out


def test_in_half_precision_infinite_gradients_end_the_run_at_scale_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = Poison(range(1, 99), "gradient", math.inf)
    with pytest.raises(UserError, match=r"2 steps in a row .* step 7 with learning rate"):
        fit(tmp_path, poison, NonFinite(2), steps=50, plugins=[half(2.0**4)])
    assert len(poison.weights) == 1 + 4 + 2
    assert same(poison.weights[1], poison.weights[-1])
    assert "step 6 is skipped" in capsys.readouterr().out


def test_in_half_precision_a_nonfinite_loss_counts_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 steps in a row"):
        fit(tmp_path, Poison(range(1, 99), "loss"), NonFinite(2), plugins=[half(2.0**12)])


def test_a_limit_below_one_is_an_error() -> None:
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        NonFinite(0)
