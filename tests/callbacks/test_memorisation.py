"""Memorisation: the share of near images, the panel of nearest training images, and when they are made."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.big_dataset import pixels_as_they_are
from helpers.brute_force import brute_force
from helpers.fits import events, fit, tensorboard
from helpers.tiny import quiet_trainer, same, tiny_model, weights
from PIL import Image
from torch import Tensor

from lightning_ddpm.callbacks import EMA, Memorisation
from lightning_ddpm.callbacks.memorisation import GAP, build_panel
from lightning_ddpm.data import Digits, ImageDataModule, MemoryDataset
from lightning_ddpm.data.image_io import TITLE_HEIGHT, arrange_grid, to_float
from lightning_ddpm.data.sharding import spread_indices
from lightning_ddpm.diffusion import DDIM, Denoiser, Sampler
from lightning_ddpm.metrics import DigitsFeatures, Inception
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import make_generator

NAME = "memorisation_digits"


class Copier(Sampler):
    """Returns given images, as a model that has memorised them would."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def trajectory(self, denoise: Denoiser, x_T: Tensor, noise: Any = None) -> Iterator[Tensor]:
        yield to_float(self.images[: len(x_T)])

    def nfe(self, T: int) -> int:
        return 0


def memorisation(**arguments: Any) -> Memorisation:
    defaults = {"extractor": DigitsFeatures(), "n": 70, "sampler": DDIM(steps=2), "batch_size": 32}
    return Memorisation(**(defaults | arguments))


def measure(folder: Path, callback: Memorisation, data: ImageDataModule | None = None) -> dict[str, float]:
    trainer = quiet_trainer(folder, callbacks=[callback], limit_test_batches=1)
    (metrics,) = trainer.test(tiny_model(), datamodule=data or ImageDataModule(Digits()), verbose=False)
    return dict(metrics)


def digits(split: Any) -> Tensor:
    data = Digits().open(Path(), split)
    assert isinstance(data, MemoryDataset)
    return data.images


def test_copies_of_training_images_are_their_own_nearest_images(tmp_path: Path) -> None:
    callback = memorisation(sampler=Copier(digits("train")), batch_size=70)
    assert measure(tmp_path, callback)[f"test/{NAME}"] == 1.0
    found = callback.proximity
    assert found is not None
    assert found.indices[:, 0].tolist() == list(range(70))
    assert (found.distances[:64, 0] == 0).all()
    assert found.distances[64:, 0].max() < 1e-4  # the last six were in a batch of another size
    assert found.distances[:, 1].min() > 1


def test_held_out_images_have_the_share_of_the_quantile(tmp_path: Path) -> None:
    callback = memorisation(n=179, sampler=Copier(digits("test")), batch_size=179)
    share = measure(tmp_path, callback)[f"test/{NAME}"]
    found = callback.proximity
    assert found is not None
    assert torch.equal(found.distances[:, 0], found.held_out)
    assert share == pytest.approx(9 / 179)


@pytest.mark.parametrize("first", [True, False])
def test_the_end_of_fit_shows_images_by_the_averaged_weights_beside_their_nearest(tmp_path: Path, first: bool) -> None:
    callback, average, model = (
        memorisation(extractor=pixels_as_they_are(64), shown=5, neighbours=3),
        EMA(0.5),
        tiny_model(),
    )
    both = [callback, average] if first else [average, callback]
    fit(tmp_path / "run", both, model, logger=tensorboard(tmp_path))
    made = torch.cat(
        [pixels for _, pixels in generate_batches(model, SampleRequest(70, batch_size=32, sampler=DDIM(steps=2)))]
    )
    training, unseen = digits("train"), digits("test")[spread_indices(70, 179)]
    distances, indices = brute_force(made.flatten(1) / 127.5, training.flatten(1) / 127.5, 3)
    of_unseen, _ = brute_force(unseen.flatten(1) / 127.5, training.flatten(1) / 127.5, 1)
    found = callback.proximity
    assert found is not None
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances, distances, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.held_out, of_unseen[:, 0], rtol=1e-5, atol=0)

    share = float((distances[:, 0] <= np.quantile(of_unseen, 0.05)).double().mean())
    written = events(tmp_path)
    (event,) = written.Scalars("val/memorisation_pixels")
    assert (event.step, event.value) == (4, pytest.approx(share))

    panel = np.array(Image.open(tmp_path / "run" / "samples" / "memorisation-0000004.png"))
    cell = 50  # 48 pixels, and 2 between images
    assert panel.shape == (TITLE_HEIGHT + 5 * cell + 2, 4 * cell + 2 + GAP, 3)
    for row in range(5):
        lefts = [2, *(2 + GAP + cell * column for column in (1, 2, 3))]
        for left, image in zip(lefts, [made[row], *training[indices[row]]], strict=True):
            top = TITLE_HEIGHT + 2 + cell * row
            assert np.array_equal(panel[top : top + 48 : 6, left : left + 48 : 6, 0], image[0].numpy())
    for tag, name in (("memorisation", ""), ("memorisation_distances", "-distances")):
        (event,) = written.Images(f"val/{tag}")
        file = Image.open(tmp_path / "run" / "samples" / f"memorisation-0000004{name}.png")
        assert event.step == 4
        assert np.array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), np.array(file))
    bars = np.array(file).astype(int)
    coloured = (bars.max(-1) - bars.min(-1) > 50).any(0).nonzero()[0]
    assert coloured.max() - coloured.min() > 100
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "memorisation-0000004-distances.png",
        "memorisation-0000004.png",
    ]


@pytest.mark.parametrize(
    ("interval", "steps"),
    [({"every_n_steps": 2}, [2, 4, 6]), ({"every_n_epochs": 2}, [6])],
    ids=str,
)
def test_an_interval_replaces_the_run_at_the_end(tmp_path: Path, interval: dict[str, int], steps: list[int]) -> None:
    callback = memorisation(n=20, **interval)
    fit(tmp_path, [callback], logger=tensorboard(tmp_path), max_steps=-1, max_epochs=2, limit_train_batches=3)
    assert [event.step for event in events(tmp_path).Scalars(f"val/{NAME}")] == steps
    written = {path.name for path in (tmp_path / "samples").iterdir()}
    assert written == {f"memorisation-{step:07d}{what}.png" for step in steps for what in ("", "-distances")}


def test_it_does_not_change_training(tmp_path: Path) -> None:
    with_it, without = tiny_model(), tiny_model()
    fit(tmp_path, [memorisation(n=9, every_n_steps=1)], with_it)
    fit(tmp_path, [], without)
    assert same(weights(with_it), weights(without))


def test_a_fast_dev_run_measures_nothing(tmp_path: Path) -> None:
    fit(tmp_path, [callback := memorisation()], fast_dev_run=True, max_steps=-1)
    assert callback.proximity is None
    assert not (tmp_path / "samples").exists()


def test_cost_and_share_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [callback := memorisation()])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "memorisation: 70 images x 2 network evaluations and one pass over 1618 training images, at the end of training"
    )
    assert callback.proximity is not None
    start = f"step 4: val/{NAME} {callback.proximity.share:.3g}: the share of 70 generated images no farther "
    assert any(line == f"{start}from the training set than the nearest 5% of 70 held-out images" for line in lines)


class FewHeldOut(Digits):
    """The digits with n held-out images."""

    def __init__(self, n: int) -> None:
        self.n = n

    def open(self, root: Path, split: Any) -> MemoryDataset:
        data = super().open(root, split)
        return MemoryDataset(data.images[: self.n], data.labels[: self.n]) if split == "test" else data


@pytest.mark.filterwarnings("ignore:.*is set to use 0 workers")
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
@pytest.mark.parametrize("n", [0, 19])
def test_with_too_few_held_out_images_only_the_panel_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    trainer = quiet_trainer(tmp_path, callbacks=[callback := memorisation()], logger=tensorboard(tmp_path), max_steps=2)
    trainer.fit(tiny_model(), datamodule=ImageDataModule(FewHeldOut(n), batch_size=16))
    reason = f"which needs at least 20 held-out images and n of at least 20; got {n} and n=70"
    assert f"memorisation: the panel without the share, {reason}" in capsys.readouterr().out
    assert callback.proximity is not None
    assert callback.proximity.held_out.shape == (n,)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "memorisation-0000002.png",
        "memorisation-0000002-distances.png",
    }
    assert f"val/{NAME}" not in events(tmp_path).Tags()["scalars"]
    assert "val/memorisation" in events(tmp_path).Tags()["images"]


def test_a_panel_may_have_one_row_and_colours() -> None:
    colours = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=make_generator("cpu", "test"))
    panel = build_panel(colours[:1], MemoryDataset(colours, torch.zeros(3)), torch.tensor([[2, 1]]))
    assert panel.shape == (3, TITLE_HEIGHT + 52, 3 * 50 + 2 + GAP)
    for left, image in ((2, colours[0]), (52 + GAP, colours[2]), (102 + GAP, colours[1])):
        assert torch.equal(panel[:, TITLE_HEIGHT + 2 : TITLE_HEIGHT + 50, left : left + 48], image)
        assert (panel[:, :TITLE_HEIGHT, left : left + 48] < 128).any(), "a column has no title"
    assert (panel[:, :, 50 : 52 + GAP] == 255).all()


def test_the_panels_titles_rank_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def keep_titles(pixels: Tensor, columns: int, given: list[str]) -> Tensor:
        titles.extend(given)
        return arrange_grid(pixels, columns, given)

    monkeypatch.setattr("lightning_ddpm.callbacks.memorisation.arrange_grid", keep_titles)
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    build_panel(images, MemoryDataset(images, torch.zeros(1)), torch.zeros(1, 23, dtype=torch.long))
    assert titles[:5] == ["sample", "nearest", "2nd", "3rd", "4th"]
    assert titles[11:14] == ["11th", "12th", "13th"]
    assert titles[21:] == ["21st", "22nd", "23rd"]


@pytest.mark.parametrize(
    "arguments", [{"n": 0}, {"shown": 0}, {"shown": 71}, {"neighbours": 0}, {"batch_size": 0}], ids=str
)
def test_invalid_numbers_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"shows at least 1 of its n images beside at least 1 neighbour.*got shown="):
        memorisation(**arguments)


def test_two_intervals_are_refused() -> None:
    with pytest.raises(UserError, match="give either every_n_steps or every_n_epochs"):
        memorisation(every_n_steps=1, every_n_epochs=1)


def classifier() -> ImageClassifier:
    return ImageClassifier(
        SmallCNN(1, 8, 10), torch.optim.SGD, lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer)
    )


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        ({"neighbours": 1619}, tiny_model, "there are 1618 training images and the .* shows 1619 neighbours; lower"),
        ({"sampler": DDIM(steps=21)}, tiny_model, "21"),
        ({"extractor": Inception("nowhere.pth")}, tiny_model, "there is no file nowhere.pth"),
        ({}, classifier, "needs a module with image_shape, values and generate, .* got ImageClassifier without"),
    ],
    ids=["neighbours", "steps", "weights", "a classifier"],
)
def test_what_cannot_be_measured_is_refused_before_training(
    tmp_path: Path, arguments: dict[str, Any], model: Callable[[], Any], message: str
) -> None:
    built = model()
    before = weights(built)
    with pytest.raises(UserError, match=message):
        fit(tmp_path, [memorisation(**arguments)], built)
    assert same(before, weights(built))


def test_data_of_another_kind_is_an_error(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=16)
    data.setup("test")
    with pytest.raises(UserError, match="searches an ImageDataModule's training set, got NoneType"):
        quiet_trainer(tmp_path, callbacks=[memorisation()]).test(tiny_model(), data.test_dataloader(), verbose=False)
