"""Modules other than DDPM that generate images: evaluation, memorisation and sample grids take them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fits import events, tensorboard
from helpers.tiny import quiet_trainer, tiny_model
from PIL import Image
from pytorch_lightning import Callback, LightningModule
from torch import Tensor, nn

from lightning_ddpm import generate
from lightning_ddpm.callbacks import (
    EMA,
    BitsPerDim,
    Checkpoints,
    Compile,
    Evaluation,
    Memorisation,
    SampleGrid,
    TrialStep,
)
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.data.image_io import arrange_grid
from lightning_ddpm.data.value_range import UINT8
from lightning_ddpm.diffusion import DDIM, ClassifierFree
from lightning_ddpm.metrics import DigitsFeatures, FrechetDistance
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.image_generator import count_nfe, name_sampler, require_generator
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.utils.condition import Condition
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

TRAIN = ImageDataModule(Digits()).train
N = 70


class Copies(LightningModule):
    """Generates training images times a learned factor, which is 1 after the first step and then falls."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape, self.values = (1, 8, 8), UINT8
        self.factor = nn.Parameter(torch.tensor(1.25))

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        pixels, _ = TRAIN.__getitems__(range(start, stop))
        return (pixels * self.factor.clamp(max=1)).round().to(torch.uint8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.factor

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: these tests do not validate."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)


class Floats(Copies):
    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        return torch.zeros(stop - start, 1, 8, 8)


class NoChannels(Copies):
    def __init__(self) -> None:
        super().__init__()
        self.image_shape = (8, 8)  # type: ignore[assignment]


class NoRange(Copies):
    def __init__(self) -> None:
        super().__init__()
        self.values = "uint8"  # type: ignore[assignment]


class Silent(LightningModule):
    training_step, configure_optimizers = Copies.training_step, Copies.configure_optimizers
    validation_step = Copies.validation_step

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))


def fit(folder: Path, callbacks: list[Callback], model: LightningModule, steps: int = 1) -> Any:
    settings: dict[str, Any] = {"max_steps": steps, "logger": tensorboard(folder)}
    settings["enable_checkpointing"] = any(isinstance(each, Checkpoints) for each in callbacks)
    trainer = quiet_trainer(folder, callbacks=callbacks, **settings)
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=16))
    return trainer


def compute_distance(images: Tensor) -> float:
    distance = FrechetDistance(DigitsFeatures(), torch.device("cpu"))
    distance.extractor.load()
    distance.set_reference(TRAIN, Ranks(), lambda batches, total: (batch for _, batch in batches))
    for batch in torch.split(images, 16):
        distance.update(batch)
    return distance.compute()


def test_callbacks_evaluate_any_module_that_generates_with_its_averaged_weights(tmp_path: Path) -> None:
    """After three steps the factor is 1/2, and its average, with the decays 2/11 and 1/4, is 0.574."""
    model, extractor = Copies(), DigitsFeatures()
    callbacks = [
        EMA(0.5),
        Evaluation(extractor, n=N, every_n_steps=3, batch_size=16),
        Memorisation(extractor, n=N, every_n_steps=1, batch_size=16),
        SampleGrid(n=9, every_n_steps=3),
        Checkpoints(every_n_steps=3, monitor="val/fd_digits"),
    ]
    trainer = fit(tmp_path, callbacks, model, 3)
    average = float(torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]["factor"])
    assert average == pytest.approx(0.25 * (2 / 11 + 9 / 11 * 0.75) + 0.75 * 0.5)
    pixels, _ = TRAIN.__getitems__(range(N))
    darker = (pixels * average).round().to(torch.uint8)
    assert float(trainer.callback_metrics["val/fd_digits"]) == pytest.approx(compute_distance(darker), rel=1e-5)
    grid = np.array(Image.open(tmp_path / "samples" / "step-0000003.png"))
    assert np.array_equal(grid, arrange_grid(darker[:9]).permute(1, 2, 0).numpy())
    shares = [each.value for each in events(tmp_path).Scalars("val/memorisation_digits")]
    assert shares[0] == 1.0
    assert shares[2] < 0.5


def test_generate_returns_the_images_of_any_such_module_in_any_batches() -> None:
    expected, _ = TRAIN.__getitems__(range(N))
    assert torch.equal(generate(Copies(), N, batch_size=7), expected)
    model, request = require_generator(Copies()), SampleRequest(1)
    assert (name_sampler(model), count_nfe(model, request)) == ("Copies", None)
    ours, guided = tiny_model(sampler=DDIM(steps=2)), SampleRequest(1, guidance=ClassifierFree(2.0))
    assert require_generator(ours) is ours
    assert (name_sampler(ours), count_nfe(ours, guided)) == (str(DDIM(steps=2)), 4)


@pytest.mark.parametrize(
    ("callback", "model", "message"),
    [
        (SampleGrid(sampler=DDIM(2), every_n_steps=1), Copies, "sampler needs a DDPM, and Copies generates"),
        (SampleGrid(guidance=ClassifierFree(2.0), every_n_steps=1), Copies, "guidance needs a DDPM, and Copies"),
        (Evaluation(DigitsFeatures(), n=9, sampler=DDIM(2)), Copies, "sampler needs a DDPM, and Copies generates"),
        (Evaluation(DigitsFeatures(), n=20, metrics=["accuracy"]), Copies, "accuracy needs images that were generated"),
        (BitsPerDim(), Copies, "bits/dim needs a DDPM, got Copies"),
        (Compile(), Copies, "Compile compiles model.network, and Copies has none"),
        (TrialStep(), Floats, r"generate must return 2 images as a tensor \(2, 1, 8, 8\) torch.uint8, got .*float32;"),
        (SampleGrid(every_n_steps=1), NoChannels, r"must have image_shape \(channels, .* got \(8, 8\) and ValueRange"),
        (SampleGrid(every_n_steps=1), NoRange, r"must have .* a ValueRange such as UINT8; got \(1, 8, 8\) and 'uint8'"),
        (SampleGrid(every_n_steps=1), Silent, "got Silent .* without image_shape and values and generate; remove"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Callback) else getattr(each, "__name__", None),
)
def test_what_such_a_module_cannot_do_is_refused_by_name(
    tmp_path: Path, callback: Callback, model: type[LightningModule], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit(tmp_path, [callback], model())


def test_classes_and_wrong_images_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="labels needs a DDPM, and Copies"):
        generate(Copies(), 4, labels=[3])
    with pytest.raises(UserError, match="conditions needs a DDPM, and Copies"):
        [*generate_batches(Copies(), SampleRequest(4, conditions=lambda start, stop: Condition()))]
    with pytest.raises(UserError, match="must return 4 images"):
        generate(Floats(), 4)
