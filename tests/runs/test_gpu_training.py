"""Training on a GPU in every precision, compilation and layout; some of it on the CPU, without inductor."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import quiet_trainer, same, tiny_model, tiny_network, weights
from helpers.two_epochs import SaveAt
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from lightning_ddpm.callbacks import ChannelsLast, Compile, NonFinite
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.sample_request import SampleRequest

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
OPTIONS = ("plain", "channels_last", "compile", "compile, channels_last")
ON_A_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
pytestmark = [
    # where the gradient scaler skips the first step
    pytest.mark.filterwarnings("ignore:.*call of `lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`"),
]
ALL = [pytest.param("gpu", *each, marks=ON_A_GPU) for each in product(PRECISIONS, OPTIONS)]
COMPILED = pytest.param("cpu", "bf16-mixed", "compile, channels_last", marks=pytest.mark.slow)
ON_THE_CPU = [("cpu", "32-true", "plain"), ("cpu", "16-mixed", "channels_last")]


class Watch(Callback):
    """Records weights and loss of every step, makes an image of a batch NaN, and samples at the end."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.weights.append(weights(pl_module))
        if batch_idx == self.broken:
            batch[0][3] = float("nan")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DDPM)
        pl_module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            self.images = pl_module.generate(SampleRequest(5, seed=0), 0, 5).cpu()


def train(
    folder: Path,
    accelerator: str,
    precision: str,
    options: str,
    *callbacks: Callback,
    broken: int = -1,
    ckpt_path: Path | None = None,
) -> tuple[Watch, Trainer]:
    """Train until step 6 without dropout; with a large eps, rounding errors of zero gradients do not become steps."""
    watch, added = Watch(broken), list[Callback]()
    if "channels_last" in options:
        added.append(ChannelsLast())
    if "compile" in options:
        torch.compiler.reset()
        added.append(Compile("inductor" if accelerator == "gpu" else "eager"))
    model = tiny_model(
        network=tiny_network(dropout=0.0),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2, eps=1e-2, fused=True),
    )
    if (accelerator, precision) == ("cpu", "16-mixed"):  # which Lightning replaces by bf16 there
        scaler = torch.amp.GradScaler("cpu")
        arithmetic: dict[str, Any] = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
    else:
        arithmetic = {"precision": precision}
    trainer = quiet_trainer(
        folder,
        callbacks=[watch, NonFinite(), *added, *callbacks],
        accelerator=accelerator,
        **arithmetic,
        max_steps=6,
        gradient_clip_val=1.0,
    )
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=16), ckpt_path=ckpt_path)
    watch.weights.append({name: each.cpu() for name, each in weights(model).items()})
    return watch, trainer


@pytest.mark.parametrize(("accelerator", "precision", "options"), [*ON_THE_CPU, COMPILED, *ALL])
def test_every_precision_and_option_trains_and_samples(
    accelerator: str, precision: str, options: str, tmp_path: Path
) -> None:
    exact, _ = train(tmp_path, accelerator, "32-true", "plain")
    watch, trainer = train(tmp_path, accelerator, precision, options)
    assert trainer.global_step == 6
    assert watch.losses[0] == pytest.approx(exact.losses[0], rel=2e-2), "the same weights, images, t and noise"
    assert all(torch.tensor(loss).isfinite() for loss in watch.losses)
    assert not same(weights(tiny_model(network=tiny_network(dropout=0.0))), watch.weights[-1])
    assert all(each.isfinite().all() and each.dtype == torch.float32 for each in watch.weights[-1].values())
    assert watch.images.dtype == torch.uint8
    assert watch.images.shape == (5, 1, 8, 8)
    assert watch.images.float().std() > 1
    assert not torch.equal(watch.images[0], watch.images[1])


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [
        *(("cpu", each) for each in PRECISIONS),
        *(pytest.param("gpu", each, marks=ON_A_GPU) for each in PRECISIONS),
    ],
)
def test_a_nan_step_is_skipped_and_training_continues(accelerator: str, precision: str, tmp_path: Path) -> None:
    watch, trainer = train(tmp_path, accelerator, precision, "plain", broken=2)
    assert trainer.global_step == 6
    assert [step for step, loss in enumerate(watch.losses) if loss != loss] == [2]
    assert same(watch.weights[2], watch.weights[3])
    assert not same({name: each.cpu() for name, each in watch.weights[3].items()}, watch.weights[-1])
    assert all(each.isfinite().all() for each in watch.weights[-1].values())
    assert trainer.callback_metrics["train/steps_skipped"] == 1


@pytest.mark.parametrize(
    ("accelerator", "precision", "options"),
    [
        *ON_THE_CPU,
        pytest.param("gpu", "32-true", "plain", marks=ON_A_GPU),
        pytest.param("gpu", "bf16-mixed", "compile, channels_last", marks=ON_A_GPU),
        pytest.param("gpu", "16-mixed", "channels_last", marks=ON_A_GPU),
    ],
)
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    accelerator: str, precision: str, options: str, tmp_path: Path
) -> None:
    path = tmp_path / "three.ckpt"
    whole, _ = train(tmp_path, accelerator, precision, options, SaveAt(3, path))
    resumed, trainer = train(tmp_path, accelerator, precision, options, ckpt_path=path)
    assert trainer.global_step == 6
    assert resumed.losses == pytest.approx(whole.losses[3:], rel=1e-2)
    moved, error = (
        max(float((each.cpu() - whole.weights[-1][name]).abs().max()) for name, each in other.items())
        for other in (whole.weights[3], resumed.weights[-1])
    )
    assert error < moved / 10
