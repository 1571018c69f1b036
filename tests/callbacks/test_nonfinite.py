"""Numbers that are not finite, memory that is too small, and ranks that fail."""

import math
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY, ddpm, tiny_digits, write_yaml
from helpers.run_spies import NumberedDigits
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.precision import MixedPrecision

from lightning_ddpm.callbacks import EMA, Checkpoints, NonFinite, StopAllRanks
from lightning_ddpm.data import ImageDataModule
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.sample_request import SampleRequest
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
def test_a_step_that_is_not_finite_is_left_out(
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
    said = capsys.readouterr().out
    assert "step 3 is skipped: its loss or gradient is not finite (1 in a row; 10 end the run)" in said
    assert "step 4 is skipped: its loss or gradient is not finite (2 in a row; 10 end the run)" in said
    counts = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert counts == {4}, "Adam counts the steps that were made"


def test_too_many_steps_in_a_row_end_the_run_and_leave_a_good_checkpoint(tmp_path: Path) -> None:
    poison = Poison(range(3, 99), "loss")
    with pytest.raises(UserError) as ended:
        fit(tmp_path, EMA(0.5), poison, NonFinite(3), Checkpoints(every_n_steps=1), steps=50, enable_checkpointing=True)
    said = str(ended.value)
    assert "3 steps in a row" in said
    assert "step 6 with learning rate 0.01" in said
    assert f"on rank 0 the loss of images {poison.images[6]} at t=" in said
    assert said.count(" at t=") == 1, "one image was bad"
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        assert all(value.isfinite().all() for value in last[part].values())


@pytest.mark.parametrize(("step", "steps"), [(5, 9), (6, 6)], ids=["of an epoch", "of the run"])
def test_the_last_step_is_told_with_its_images_too(tmp_path: Path, step: int, steps: int) -> None:
    poison = Poison(range(step - 1, step), "loss")
    with pytest.raises(UserError, match=f"last of them step {step} with") as ended:
        fit(tmp_path, poison, NonFinite(1), steps=steps)
    assert f"on rank 0 the loss of images {poison.images[step]} at t=" in str(ended.value)


def test_a_step_left_out_is_in_the_count_of_the_checkpoint_after_it(tmp_path: Path) -> None:
    kept = Checkpoints(every_n_steps=4)
    fit(tmp_path, Poison(range(3, 4), "loss"), NonFinite(), kept, steps=4, enable_checkpointing=True)
    counted = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["NonFinite"]
    assert counted == {"skipped": 1}


@pytest.mark.parametrize(
    ("optimizer", "by_itself"),
    [
        (partial(torch.optim.Adam, lr=1e-2, fused=True), True),
        (partial(torch.optim.AdamW, lr=1e-2, fused=True), True),
        (partial(torch.optim.Adam, lr=1e-2), False),
        (partial(torch.optim.SGD, lr=1e-2, momentum=0.9), False),
        (partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True), False),
    ],
    ids=["Adam, fused", "AdamW, fused", "Adam", "SGD", "SGD, fused"],
)
def test_the_first_step_and_a_later_one_are_left_out_by_every_optimizer(
    tmp_path: Path, optimizer: Any, by_itself: bool
) -> None:
    """Those that cannot by themselves are given no gradients: momentum goes on wherever there is one."""
    poison = Poison(range(0, 4, 3), "gradient")
    model = tiny_model(optimizer=optimizer)
    trainer = quiet_trainer(tmp_path, callbacks=[poison, NonFinite()], max_steps=6)
    trainer.fit(model, datamodule=ImageDataModule(NumberedDigits(40), batch_size=8))
    seen = [*poison.weights, weights(model)]
    assert [same(before, after) for before, after in pairwise(seen)] == [True, False, False, True, False, False]
    assert all(each.isfinite().all() for each in weights(model).values())
    assert hasattr(trainer.optimizers[0], "found_inf") is by_itself


def test_a_last_step_that_is_left_out_is_in_the_curves(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Poison(range(5, 6), "loss"), NonFinite(), logger=logger)
    logger.save()
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    (column,) = (i for i, name in enumerate(rows[0].split(",")) if name == "train/steps_skipped")
    assert float(rows[-1].split(",")[column]) == 1


def test_a_step_left_out_is_said_by_a_run_that_a_signal_stops_after_it(
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


def test_a_gradient_alone_names_the_images_of_the_batch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only the gradient, of a batch of images .* at t=") as ended:
        fit(tmp_path, Poison(range(99), "gradient"), NonFinite(2))
    assert str(ended.value).count(" at t=") == 8


def test_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Poison(range(0, 99, 2), "loss"), NonFinite(2), steps=8)
    assert trainer.global_step == 8
    assert trainer.callback_metrics["train/steps_skipped"] == 4


def test_a_batch_among_several_of_a_step_spoils_it_and_is_named(tmp_path: Path) -> None:
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


def test_in_half_precision_an_infinite_gradient_is_the_scalers_while_it_can_go_down(
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


def test_in_half_precision_gradients_that_stay_infinite_end_the_run_when_the_scale_is_down_at_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = Poison(range(1, 99), "gradient", math.inf)
    with pytest.raises(UserError, match=r"2 steps in a row .* step 7 with learning rate"):
        fit(tmp_path, poison, NonFinite(2), steps=50, plugins=[half(2.0**4)])
    assert len(poison.weights) == 1 + 4 + 2
    assert same(poison.weights[1], poison.weights[-1])
    assert "step 6 is skipped" in capsys.readouterr().out


def test_in_half_precision_a_loss_that_is_not_finite_counts_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 steps in a row"):
        fit(tmp_path, Poison(range(1, 99), "loss"), NonFinite(2), plugins=[half(2.0**12)])


def test_a_limit_below_one_is_an_error() -> None:
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        NonFinite(0)


def test_a_batch_that_does_not_fit_the_memory_is_drawn_in_parts_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    model, asked = tiny_model(), []
    whole = torch.cat([pixels for _, pixels in generate_batches(model, SampleRequest(n=20, seed=3, batch_size=8))])
    draw = model.generate

    def small(request: SampleRequest, start: int, stop: int) -> torch.Tensor:
        asked.append(stop - start)
        if asked[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(request, start, stop)

    model.generate = small  # type: ignore[method-assign]
    ranges = []
    parts = []
    for batch, pixels in generate_batches(model, SampleRequest(n=20, seed=3, batch_size=8)):
        ranges.append(batch)
        parts.append(pixels)
    assert ranges == [(3, 0, 8), (3, 8, 16), (3, 16, 20)]
    assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1
    assert asked == [8, 4, 2, 2, 2, 2, *[2] * 4, *[2] * 2]
    said = capsys.readouterr().out
    assert "a batch of 8 images does not fit into memory; continuing with 4" in said
    assert "a batch of 4 images does not fit into memory; continuing with 2" in said


def test_an_image_that_does_not_fit_the_memory_is_an_error() -> None:
    model = tiny_model()

    def none(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.generate = none  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        list(generate_batches(model, SampleRequest(n=4, batch_size=4)))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_exception_on_one_rank_ends_both_with_its_traceback(tmp_path: Path, rank: int) -> None:
    config = tiny_digits(tmp_path / "run")
    config["trainer"]["max_steps"] = 100_000
    config["trainer"]["callbacks"] = [
        {"class_path": "helpers.run_spies.Fails", "init_args": {"step": 3, "rank": rank, "folder": str(tmp_path)}}
    ]
    options = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    # waits until both are gone, because both have its pipes
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *options, PYTHONPATH=path)
    seconds = time.time() - float((tmp_path / "failed-at").read_text())
    assert ended.returncode != 0
    assert "ArithmeticError: on this rank alone" in ended.stderr
    assert seconds < 60


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.distributed.DistBackendError("watchdog"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SystemExit(0), False),
    ],
)
def test_a_rank_that_has_lost_another_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, lost: bool
) -> None:
    """The third is what gloo says when its time is up while buffers are sent round: it does not say that it is gloo."""
    StopAllRanks().on_exception(quiet_trainer(tmp_path), tiny_model(), error)
    assert ("rank 0 lost the connection to another rank after step 0" in capsys.readouterr().out) is lost
