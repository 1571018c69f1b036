"""EMA: its arithmetic, and when the module has the averaged weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import quiet_trainer, same, tiny_model, tiny_network, weights
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ddpm.callbacks import EMA
from lightning_ddpm.callbacks.trainer_access import use_averaged_weights
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.errors import UserError

Weights = dict[str, Tensor]


class RawWeights(Callback):
    """Records the weights after every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(weights(pl_module))


class At(Callback):
    """Calls a function at a hook."""

    def __init__(self, hook: str, do: Callable[[Trainer, LightningModule], None]) -> None:
        setattr(self, hook, lambda trainer, module, *_: do(trainer, module))


def compute_average(steps: Sequence[Weights], decay: float, average: Weights | None = None, n: int = 0) -> Weights:
    """Compute average <- d average + (1 - d) weights from the first step on; d = min(decay, (1 + n) / (10 + n))."""
    for current in steps:
        d = min(decay, (1 + n) / (10 + n))
        start = average is None
        average = {name: w if start else d * average[name] + (1 - d) * w for name, w in current.items()}  # type: ignore[index]
        n += 1
    assert average is not None
    return average


def assert_close(first: Mapping[str, Tensor], second: Weights) -> None:
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def fit(folder: Path, callbacks: list[Callback], steps: int = 6, model: DDPM | None = None, **arguments: Any) -> DDPM:
    model = model or tiny_model()
    ckpt_path = arguments.pop("ckpt_path", None)
    trainer = quiet_trainer(folder, callbacks=callbacks, max_steps=steps, **arguments)
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=16), ckpt_path=ckpt_path)
    return model


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9999])
def test_the_average_follows_the_formula(tmp_path: Path, decay: float) -> None:
    raw = RawWeights()
    model = fit(tmp_path, [raw, EMA(decay)])
    assert len(raw.steps) == 6
    assert_close(weights(model), compute_average(raw.steps, decay))


def test_accumulated_batches_update_the_average_once_per_step(tmp_path: Path) -> None:
    raw, ema = RawWeights(), EMA(0.9999)
    model = fit(tmp_path, [ema, raw], accumulate_grad_batches=2)
    assert len(raw.steps) == 6
    assert_close(weights(model), compute_average(raw.steps, 0.9999))


class Counting(nn.Module):
    """A network with a buffer that counts its training batches."""

    channels, size = 1, 8
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_network()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return self.network(x_t, t)  # type: ignore[no-any-return]


def test_buffers_are_not_averaged(tmp_path: Path) -> None:
    seen: list[float] = []
    ema = EMA()

    def look(trainer: Trainer, module: LightningModule) -> None:
        with ema.use_average(module):
            seen.append(float(module.network.count))

    model = fit(tmp_path, [ema, At("on_train_batch_end", look)], model=tiny_model(network=Counting()))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert float(model.network.count) == 6
    assert ema._average_model is not None
    assert torch.equal(model.schedule.alpha_bar, tiny_model().schedule.alpha_bar)


def test_the_average_is_on_the_modules_device_and_its_counter_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ema, model, trainer = EMA(), tiny_model(), Trainer(logger=False, barebones=True)
    ema.setup(trainer, model, "fit")
    model.to("meta")  # as Lightning moves it to a GPU, after setup
    ema.on_fit_start(trainer, model)
    average = ema._average_model
    assert average is not None
    assert {each.device.type for each in (*average.module.parameters(), *average.module.buffers())} == {"meta"}
    assert average.n_averaged.device.type == "cpu"
    monkeypatch.setattr(Trainer, "global_step", 1)
    ema.on_train_batch_end(trainer, model, None, None, 0)
    assert int(average.n_averaged) == 1


def test_a_second_fit_starts_a_new_average(tmp_path: Path) -> None:
    ema, model = EMA(), tiny_model()
    fit(tmp_path / "first", [ema], model=model)
    raw = RawWeights()
    fit(tmp_path / "second", [raw, ema], model=model)
    assert_close(weights(model), compute_average(raw.steps, ema.decay))


def test_a_module_without_buffers_is_averaged(tmp_path: Path) -> None:
    class Line(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def training_step(self, batch: Tensor) -> Tensor:
            return (self.weight * batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    model = Line()
    quiet_trainer(tmp_path, callbacks=[EMA(0.0)], max_steps=2).fit(model, DataLoader(torch.ones(4)))
    assert model.weight.item() == -1


@pytest.mark.parametrize("first", [True, False], ids=["EMA first", "EMA last"])
def test_callbacks_get_the_average_of_all_steps_in_any_order_of_callbacks(tmp_path: Path, first: bool) -> None:
    raw, seen = RawWeights(), []

    def look(trainer: Trainer, module: LightningModule) -> None:
        with use_averaged_weights(trainer, module):
            seen.append(weights(module))

    ema, asking = EMA(0.9999), At("on_train_batch_end", look)
    fit(tmp_path, [raw, ema, asking] if first else [raw, asking, ema])
    for step, average in enumerate(seen, start=1):
        assert_close(average, compute_average(raw.steps[:step], 0.9999))


def test_the_average_does_not_change_training(tmp_path: Path) -> None:
    with_it, without = RawWeights(), RawWeights()
    for callbacks in ([with_it, EMA()], [without]):
        torch.manual_seed(0)  # dropout's
        fit(tmp_path, callbacks, limit_val_batches=1, val_check_interval=2)
    assert all(same(a, b) for a, b in zip(with_it.steps, without.steps, strict=True))


@pytest.mark.parametrize("first", [True, False], ids=["EMA first", "EMA last"])
def test_validation_uses_the_average_and_training_continues_with_the_weights(tmp_path: Path, first: bool) -> None:
    raw, seen, after = RawWeights(), [], []
    hooks = [
        At("on_validation_batch_end", lambda _, module: seen.append(weights(module))),
        At("on_train_batch_start", lambda _, module: after.append(weights(module))),
    ]
    callbacks = [EMA(0.9999), raw, *hooks] if first else [raw, *hooks, EMA(0.9999)]
    fit(tmp_path, callbacks, limit_val_batches=1, val_check_interval=2)
    assert len(seen) == 3
    for step, average in zip((2, 4, 6), seen, strict=True):
        assert_close(average, compute_average(raw.steps[:step], 0.9999))
    assert all(same(a, b) for a, b in zip(after[1:], raw.steps[:-1], strict=True))


@pytest.mark.parametrize("first", [True, False], ids=["EMA first", "EMA last"])
def test_a_checkpoint_holds_weights_and_average_whenever_it_is_written(tmp_path: Path, first: bool) -> None:
    raw, ema = RawWeights(), EMA(0.9999)

    def save(name: str) -> Callable[[Trainer, LightningModule], None]:
        return lambda trainer, module: trainer.save_checkpoint(tmp_path / name)

    def save_inside(trainer: Trainer, module: LightningModule) -> None:
        with ema.use_average(module):
            trainer.save_checkpoint(tmp_path / "inside averaged")

    savers = [
        At("on_train_epoch_end", save("in training")),
        At("on_train_epoch_end", save_inside),
        At("on_validation_end", save("in validation")),
        At("on_validation_batch_end", save("in a validation batch")),
        At("on_train_end", save("at the end")),
    ]
    callbacks = [raw, ema, *savers] if first else [raw, *savers, ema]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=1, limit_train_batches=6, limit_val_batches=1)
    model = tiny_model()
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=16))
    trainer.save_checkpoint(tmp_path / "after the fit")
    average = compute_average(raw.steps, 0.9999)
    assert_close(weights(model), average)
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(written) == 6
    for path in written:
        checkpoint = torch.load(path, weights_only=True)
        assert_close(checkpoint["state_dict"], average)
        assert same(checkpoint["current_model_state"], raw.steps[-1]), path.name
        assert int(checkpoint["averaging_state"]["n_averaged"]) == 6


@pytest.mark.parametrize("first", [True, False], ids=["EMA first", "EMA last"])
@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_validation_batch_end", "on_validation_epoch_end"])
def test_an_exception_in_validation_restores_the_trained_weights(tmp_path: Path, hook: str, first: bool) -> None:
    raw, model = RawWeights(), tiny_model()

    def fail(trainer: Trainer, module: LightningModule) -> None:
        raise ArithmeticError("in validation")

    callbacks = [EMA(), raw, At(hook, fail)] if first else [raw, At(hook, fail), EMA()]
    with pytest.raises(ArithmeticError):
        fit(tmp_path, callbacks, model=model, limit_val_batches=1, val_check_interval=4)
    assert len(raw.steps) == 4
    assert same(weights(model), raw.steps[-1])


def test_an_exception_inside_use_average_restores_the_trained_weights(tmp_path: Path) -> None:
    raw, ema, model = RawWeights(), EMA(), tiny_model()

    def fail(trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == 3:
            with ema.use_average(module), ema.use_average(module):
                raise ArithmeticError("inside")

    with pytest.raises(ArithmeticError):
        fit(tmp_path, [raw, ema, At("on_train_batch_end", fail)], model=model)
    assert same(weights(model), raw.steps[-1])


def test_a_resumed_run_restores_average_weights_and_counter(tmp_path: Path) -> None:
    first, second = RawWeights(), RawWeights()
    path = tmp_path / "three.ckpt"
    save = At("on_train_end", lambda trainer, _: trainer.save_checkpoint(path))
    fit(tmp_path, [first, EMA(0.9999), save], steps=3, limit_train_batches=3)

    started: list[Weights] = []
    look = At("on_train_batch_start", lambda _, module: started.append(weights(module)))
    second.steps += first.steps
    final = tmp_path / "six.ckpt"
    save = At("on_train_end", lambda trainer, _: trainer.save_checkpoint(final))
    resumed = [look, second, EMA(0.9999), save]
    model = fit(tmp_path, resumed, steps=6, limit_train_batches=3, ckpt_path=path, num_sanity_val_steps=1)

    assert same(started[0], first.steps[-1]), "training resumes with the trained weights, not with their average"
    assert len(second.steps) == 6
    assert_close(weights(model), compute_average(second.steps, 0.9999))
    assert int(torch.load(final, weights_only=True)["averaging_state"]["n_averaged"]) == 6


def test_without_training_the_weights_do_not_change(tmp_path: Path) -> None:
    ema, model = EMA(), tiny_model()
    before = weights(model)
    with ema.use_average(model):
        assert same(weights(model), before)
    data = ImageDataModule(Digits(), batch_size=16)
    quiet_trainer(tmp_path, callbacks=[ema], limit_val_batches=1).validate(model, datamodule=data, verbose=False)
    assert same(weights(model), before)


def test_validating_after_fit_uses_the_average(tmp_path: Path) -> None:
    seen: list[Weights] = []
    look = At("on_validation_batch_end", lambda _, module: seen.append(weights(module)))
    trainer = quiet_trainer(tmp_path, callbacks=[EMA(), look], max_steps=3, limit_val_batches=1, val_check_interval=99)
    trainer.fit(model := tiny_model(), datamodule=(data := ImageDataModule(Digits(), batch_size=16)))
    average = weights(model)
    seen.clear()
    trainer.validate(model, datamodule=data, verbose=False)
    assert same(seen[0], average)
    assert same(weights(model), average)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 9.0, float("nan")])
def test_a_decay_out_of_range_is_an_error(decay: float) -> None:
    with pytest.raises(UserError, match=r"decay must lie in \[0, 1\), got .* use 0\.9999"):
        EMA(decay)
