"""PSNR and SSIM of held-out pairs during training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import TINY, quiet_trainer, tiny_model, tiny_network

from lightning_ddpm.callbacks import PairQuality
from lightning_ddpm.callbacks.pair_quality import _mean_finite
from lightning_ddpm.data import Digits, Downscaled, ImageDataModule
from lightning_ddpm.diffusion import DDIM
from lightning_ddpm.metrics.pair_quality import measure_pairs
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import ConcatenatedImage, UNet
from lightning_ddpm.utils.errors import UserError


def make_model() -> Any:
    return tiny_model(network=UNet(**TINY, conditions=[ConcatenatedImage(1, 4)]), label_dropout=0.0)


def test_the_metrics_are_those_of_the_last_weights_and_the_grid_shows_them(tmp_path: Path) -> None:
    model, data = make_model(), ImageDataModule(Downscaled(Digits()), batch_size=64)
    quality = PairQuality(n=500, sampler=DDIM(2), every_n_steps=2, shown=3, batch_size=100)
    quiet_trainer(tmp_path, max_steps=2, callbacks=[quality]).fit(model, datamodule=data)
    held_out: Any = data.held_out
    originals, condition = held_out.__getitems__(range(len(held_out)))
    request = SampleRequest(
        len(held_out), sampler=DDIM(2), conditions=lambda a, b: held_out.read_conditions(range(a, b))
    )
    with torch.no_grad():
        found = model.eval().generate(request, 0, len(held_out))
    expected = measure_pairs(found, originals).mean(0)
    assert quality.last_metrics["val/psnr"] == pytest.approx(float(expected[0]), abs=0.01)
    assert quality.last_metrics["val/ssim"] == pytest.approx(float(expected[1]), abs=0.001)
    enlarged = torch.nn.functional.interpolate(condition.image.float(), (8, 8), mode="bicubic").clamp(0, 255).round()
    given = measure_pairs(enlarged, originals)[:, 0]
    assert quality.last_metrics["val/psnr_given"] == pytest.approx(float(given.mean()), abs=0.01)
    assert quality.evaluated_step == 2
    assert (tmp_path / "samples" / "pairs-0000002.png").is_file()


def test_a_model_and_data_without_pairs_are_refused_before_training(tmp_path: Path) -> None:
    for model, source, message in (
        (tiny_model(network=tiny_network()), Downscaled(Digits()), "the network is given none; remove the callback"),
        (make_model(), Digits(), "PairQuality needs data of pairs, such as PairedFolders"),
    ):
        trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[PairQuality(every_n_steps=1)])
        with pytest.raises(UserError, match=message):
            trainer.fit(model, datamodule=ImageDataModule(source, batch_size=64))
    with pytest.raises(UserError, match="the grid shows at least 1 of the n pairs, got shown=9 and n=4"):
        PairQuality(n=4, shown=9, every_n_steps=1)


def test_images_that_are_too_small_for_ssim_are_refused(tmp_path: Path) -> None:
    assert measure_pairs(torch.zeros(2, 1, 6, 9), torch.zeros(2, 1, 6, 9)).shape == (2, 2)
    for sides in ((5, 9), (9, 5)):
        with pytest.raises(UserError, match="SSIM needs images of at least 6x6 pixels, and these have"):
            measure_pairs(torch.zeros(2, 1, *sides), torch.zeros(2, 1, *sides))
    model = tiny_model(network=UNet(**TINY | {"size": 4, "attention": ()}, conditions=[ConcatenatedImage(1, 2)]))
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[PairQuality(every_n_steps=1)])
    with pytest.raises(UserError, match="and these have 4x4"):
        trainer.fit(model, datamodule=ImageDataModule(Downscaled(Digits()), batch_size=64))


def test_exact_images_do_not_count_and_a_diverged_model_is_not_the_best() -> None:
    assert _mean_finite(torch.tensor([20.0, math.inf, 30.0])) == 25
    assert _mean_finite(torch.tensor([math.inf, math.inf])) == math.inf
    assert math.isnan(_mean_finite(torch.tensor([math.nan, math.nan])))
    assert math.isnan(_mean_finite(torch.tensor([math.nan, math.inf, 20.0])))
