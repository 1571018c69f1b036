"""DDPM as a LightningModule: the random numbers of a step, the loss, the optimizer and the logs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import quiet_trainer, tiny_model, tiny_network
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import (
    DDIM,
    Cosine,
    EDMHeun,
    EulerMaruyama,
    FlowVelocity,
    Linear,
    PredictorCorrector,
    RectifiedFlow,
    Sampler,
    sum_by_quarter,
)
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.steps import format_quarters
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import make_generator

QUARTERS = [(0, 5), (5, 10), (10, 15), (15, 20)]
"""first < t <= last, for T = 20."""


class RecordInputs(nn.Module):
    """Predicts ``factor`` times x_t as the noise, and keeps all its inputs."""

    def __init__(self, factor: float = 0.0, channels: int = 1, size: int = 8) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.channels, self.size = channels, size
        self.x_t: list[Tensor] = []
        self.t: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.x_t.append(x_t.detach())
        self.t.append(t)
        return self.factor * x_t


class RecordTraining(Callback):
    """Keeps the metrics, learning rate and gradient norm of every step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.clipped: list[float] = []

    @staticmethod
    def norm(module: LightningModule) -> float:
        return float(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.norms.append(self.norm(pl_module))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.clipped.append(self.norm(pl_module))


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def recording_model(factor: float = 0.0, **arguments: Any) -> DDPM:
    defaults = {"network": RecordInputs(factor), "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    return tiny_model(**(defaults | arguments))


def fit(folder: Path, model: DDPM, steps: int, batch_size: int = 64, **arguments: Any) -> RecordTraining:
    logged = RecordTraining()
    trainer = quiet_trainer(folder, max_steps=steps, callbacks=[logged], **arguments)
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=batch_size))
    return logged


def noise_of(model: DDPM, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
    """Return eps in x_t, by solving the forward process for it in float64."""
    alpha_bar = model.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
    return (x_t.double() - alpha_bar.sqrt() * x_0.double()) / (1 - alpha_bar).sqrt()


def held_out() -> Tensor:
    data = Digits().open(Path("unused"), "test")
    return data.__getitems__(range(len(data)))[0] / 127.5 - 1


# the loss


@pytest.mark.parametrize("sampler", [EDMHeun(), PredictorCorrector(EulerMaruyama(10))], ids=repr)
def test_a_sampler_that_needs_signal_at_the_end_is_refused_for_a_flow_before_training(sampler: Sampler) -> None:
    with pytest.raises(UserError, match=r"ends without signal|reverse SDE cannot start"):
        DDPM(tiny_model().network, RectifiedFlow(), sampler, parameterization=FlowVelocity())


def test_the_loss_is_the_squared_error_of_the_noise() -> None:
    model = recording_model(0.3, schedule=Linear(steps=10, beta_min=0.1, beta_max=0.1))
    x_0, eps = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, 1, 8, 8)
    t = torch.tensor([1, 4, 10])
    signal, noise = (np.sqrt(each).reshape(3, 1, 1, 1) for each in (0.9 ** t.numpy(), 1 - 0.9 ** t.numpy()))
    x_t = signal * x_0.numpy() + noise * eps.numpy()
    expected = ((0.3 * x_t - eps.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(model.loss(x_0, t, eps).detach(), expected, rtol=1e-5)
    torch.testing.assert_close(model.network.x_t[0], torch.tensor(x_t, dtype=torch.float32))
    assert torch.equal(model.network.t[0], t)


def test_t_is_uniform_over_all_of_1_to_T(tmp_path: Path) -> None:
    model = recording_model(schedule=Cosine(steps=8))
    fit(tmp_path, model, steps=40, batch_size=400)
    t = torch.cat(model.network.t)
    counts = torch.bincount(t, minlength=10).double()
    assert counts[0] == counts[9:].sum() == 0
    expected = len(t) / 8
    chi_squared = ((counts[1:9] - expected) ** 2 / expected).sum()
    assert chi_squared < 24.3, "the 99.9 % quantile with 7 degrees of freedom"


def test_the_noise_is_standard_normal_and_new_at_every_step(tmp_path: Path) -> None:
    model = recording_model()
    images: list[Tensor] = []
    keep = type("Keep", (Callback,), {"on_train_batch_start": lambda *a: images.append(a[3][0])})()
    trainer = quiet_trainer(tmp_path, max_steps=8, callbacks=[keep])
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=64))
    eps = [noise_of(model, *each) for each in zip(model.network.x_t, images, model.network.t, strict=True)]
    values = torch.cat(eps).flatten()
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    assert values.var() == pytest.approx(1, abs=4 * (2 / len(values)) ** 0.5)
    for i in range(8):
        for j in range(i):
            assert abs(np.corrcoef(eps[i].flatten(), eps[j].flatten())[0, 1]) < 0.1
            assert not torch.equal(model.network.t[i], model.network.t[j])


def sample_first_batch(folder: Path, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return t and x_t of the first training step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", str(seed))
        model = DDPM(RecordInputs(), Cosine(steps=1000), DDIM(steps=2))
        data = ImageDataModule(Digits(), batch_size=1618)  # every image, in an order that depends on the seed
        quiet_trainer(folder, max_steps=1).fit(model, datamodule=data)
    return model.network.t[0], model.network.x_t[0]


def test_the_noise_depends_on_the_seed(tmp_path: Path) -> None:
    first, again, other = (sample_first_batch(tmp_path, seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert (first[0] == other[0]).float().mean() < 0.02


def test_generators_of_different_purposes_differ() -> None:
    uses = [("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("flip", 0, 0)]
    samples = [
        torch.randn(8, generator=make_generator("cpu", purpose, *key, index=index))
        for purpose, *key in uses
        for index in range(5)
    ]
    assert len({tuple(each.tolist()) for each in samples}) == 20
    again = torch.randn(8, generator=make_generator("cpu", "train", 0, 1, index=3))
    assert torch.equal(samples[8], again)


# validation


def validate(folder: Path, model: DDPM, batch_size: int, command: str = "validate") -> dict[str, float]:
    trainer = quiet_trainer(folder, limit_val_batches=1.0)
    (metrics,) = getattr(trainer, command)(
        model, datamodule=ImageDataModule(Digits(), batch_size=batch_size), verbose=False
    )
    return metrics


def test_the_validation_loss_is_a_function_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = validate(tmp_path, tiny_model(), 64)
    torch.manual_seed(1234)
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    assert validate(tmp_path, tiny_model(), 64) == first
    changed = tiny_model()
    next(changed.parameters()).data += 0.1
    assert validate(tmp_path, changed, 64) != first


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("batch_size", [64, 178, 179])
def test_the_validation_loss_is_the_exact_mean_over_images(tmp_path: Path, batch_size: int, command: str) -> None:
    model = recording_model(0.3)
    metrics = validate(tmp_path, model, batch_size, command)
    x_t, t = torch.cat(model.network.x_t).double(), torch.cat(model.network.t)
    assert len(t) == 179
    losses = (noise_of(model, x_t, held_out(), t) - 0.3 * x_t).square().mean((1, 2, 3))
    stage = "val" if command == "validate" else "test"
    assert metrics[f"{stage}/loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    for first, last in QUARTERS:
        expected = losses[(t > first) & (t <= last)].mean()
        assert metrics[f"{stage}/loss_t_{first:02}-{last:02}"] == pytest.approx(float(expected), rel=1e-5)


def test_validation_spreads_t_evenly_over_1_to_T(tmp_path: Path) -> None:
    model = recording_model()
    validate(tmp_path, model, 179)
    counts = torch.bincount(model.network.t[0], minlength=21)
    assert counts[0] == 0
    assert len(counts) == 21
    assert all(7 <= count <= 11 for count in counts[1:]), "about 179 / 20 each"


# logs


def test_training_logs_the_loss_and_its_mean_in_every_quarter_of_t(tmp_path: Path) -> None:
    model = tiny_model()
    steps: list[Tensor] = []
    model.network.register_forward_hook(lambda _, inputs, __: steps.append(inputs[1]))
    for metrics, t in zip(fit(tmp_path, model, steps=3).metrics, steps, strict=True):
        shares = torch.bincount((t - 1) // 5, minlength=4).double() / len(t)
        quarters = [metrics[f"train/loss_t_{first:02}-{last:02}"] for first, last in QUARTERS]
        assert float(shares @ torch.tensor(quarters, dtype=torch.float64)) == pytest.approx(metrics["train/loss"])


@pytest.mark.parametrize(
    ("T", "names"),
    [
        (1000, ["000-250", "250-500", "500-750", "750-1000"]),
        (4000, ["0000-1000", "1000-2000", "2000-3000", "3000-4000"]),
        (20, ["00-05", "05-10", "10-15", "15-20"]),
        (10, ["0-3", "3-5", "5-8", "8-10"]),
    ],
)
def test_quarters_are_named_by_their_timesteps(T: int, names: list[str]) -> None:
    assert format_quarters(T) == names
    t = torch.arange(1, T + 1)
    for quarter, name in enumerate(names):
        first, last = map(int, name.split("-"))
        _, counts = sum_by_quarter(torch.ones(last - first), t[first:last], T)
        assert counts.tolist() == [(last - first) * (index == quarter) for index in range(4)]


def test_a_quarter_without_images_is_not_logged_as_nan(tmp_path: Path) -> None:
    for metrics in fit(tmp_path, tiny_model(), steps=5, batch_size=2).metrics:
        assert all(np.isfinite(value) for value in metrics.values()), metrics


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_gradient_norm_is_logged_before_clipping(tmp_path: Path, clip: float | None) -> None:
    logged = fit(tmp_path, tiny_model(), steps=3, gradient_clip_val=clip)
    assert [metrics["train/gradient_norm"] for metrics in logged.metrics] == pytest.approx(logged.norms)
    assert min(logged.norms) > 0.02
    assert logged.clipped == pytest.approx([clip] * 3 if clip else logged.norms, rel=1e-3)


# optimizer and scheduler


def test_the_default_is_adam_with_a_linear_warm_up_to_2e_4_over_5000_steps() -> None:
    model = DDPM(RecordInputs(), Cosine(steps=20), DDIM(steps=2))
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    rates = []
    for _ in range(6000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(2e-4 / 5000)
    assert np.diff(rates[:5001]) == pytest.approx([(2e-4 - 4e-8) / 5000] * 5000, rel=1e-3)
    assert rates[5000:] == pytest.approx([2e-4] * 1000)


def test_the_warm_up_counts_optimizer_steps(tmp_path: Path) -> None:
    logged = fit(tmp_path, DDPM(tiny_network(), Cosine(steps=20), DDIM(steps=2)), steps=3, accumulate_grad_batches=2)
    assert logged.rates == pytest.approx([2e-4 * (0.0002 + 0.9998 * step / 5000) for step in range(3)])


def test_training_reduces_the_loss(tmp_path: Path) -> None:
    model = tiny_model()
    before = validate(tmp_path, model, 179)["val/loss"]
    fit(tmp_path, model, steps=15)
    assert validate(tmp_path, model, 179)["val/loss"] < 0.8 * before


# precision


def test_under_autocast_the_network_runs_in_bfloat16_and_the_loss_in_float32() -> None:
    model = tiny_model().eval()
    dtypes: list[torch.dtype] = []
    model.network.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    x_0, eps, t = torch.rand(2, 1, 8, 8) * 2 - 1, torch.randn(2, 1, 8, 8), torch.tensor([1, 20])
    exact = model.loss(x_0, t, eps)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x_0, t, eps)
    assert dtypes == [torch.float32, torch.bfloat16]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_schedule_stays_in_float64_whatever_the_model_is_cast_to(dtype: torch.dtype) -> None:
    model = tiny_model()
    exact = model.schedule.alpha_bar.clone()
    model.to(dtype)
    assert next(model.network.parameters()).dtype == dtype
    for table in (model.schedule.alpha_bar, model.schedule.beta, model.schedule.signal, model.schedule.noise):
        assert table.dtype == torch.float64
    assert torch.equal(model.schedule.alpha_bar, exact)


def test_mixed_precision_logs_the_loss_of_full_precision(tmp_path: Path) -> None:
    full, mixed = (
        fit(tmp_path, tiny_model(), steps=2, batch_size=16, precision=precision).metrics[0]["train/loss"]
        for precision in ("32-true", "bf16-mixed")
    )
    assert mixed == pytest.approx(full, rel=0.05)


# errors


@pytest.mark.parametrize(("channels", "size"), [(3, 8), (1, 16)])
def test_data_of_another_shape_is_an_error_that_names_both_shapes(tmp_path: Path, channels: int, size: int) -> None:
    model = recording_model(network=RecordInputs(channels=channels, size=size))
    with pytest.raises(UserError, match=f"images of 1x8x8 and the network is made for {channels}x{size}x{size}"):
        fit(tmp_path, model, steps=1)
    assert model.network.t == []


@pytest.mark.parametrize("missing", ["channels", "size"])
def test_a_network_without_its_image_shape_is_an_error(missing: str) -> None:
    network = RecordInputs()
    delattr(network, missing)
    with pytest.raises(UserError, match=rf"RecordInputs \(.*\) needs an int attribute '{missing}', .*, got None; set"):
        recording_model(network=network)


def test_a_checkpoint_holds_no_weights_but_the_network_s() -> None:
    assert all(name.startswith("network.") for name in tiny_model().state_dict())
