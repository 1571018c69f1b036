"""``evaluate`` of images that no feature network takes, and of folders that are read as training reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_outputs import get_error_sentence
from PIL import Image
from scipy.stats import wasserstein_distance

from lightning_ddpm.data import ImageFolder
from lightning_ddpm.data.value_range import ValueRange
from lightning_ddpm.metrics import ClassifierFeatures
from lightning_ddpm.metrics.extractors import check_extractor
from lightning_ddpm.models.checkpoint import build_checkpoint, build_hyper_parameters
from lightning_ddpm.models.image_classifier import ImageClassifier
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError

RANDOM = np.random.default_rng(0)


def save_all(folder: Path, arrays: np.ndarray) -> Path:
    """Write arrays (n, c, h, w) as .npy files, or (n, h, w) as PNG files of 8 or 16 bits."""
    folder.mkdir()
    for index, each in enumerate(arrays):
        if each.ndim == 3:
            np.save(folder / f"{index:03}.npy", each)
        else:
            Image.fromarray(each).save(folder / f"{index:03}.png")
    return folder


def evaluate(command, out: Path, *options: object) -> dict:
    words = ("--metrics", "spectrum", "marginals", "--accelerator", "cpu", "--out", out)
    status, _, err = command("evaluate", *options, *words)
    assert status == 0, err
    return json.loads(out.read_text())


def test_fields_of_five_channels_are_compared_in_their_own_units(command, tmp_path) -> None:
    fields = [(270 + scale * RANDOM.normal(size=(12, 5, 6, 10))).astype(np.float32) for scale in (8, 4)]
    images, reference = (save_all(tmp_path / name, each) for name, each in zip("ab", fields, strict=True))
    result = evaluate(command, tmp_path / "out.json", "--images", images, "--reference", reference)
    found = {name: each["value"] for name, each in result["metrics"].items()}
    assert result["extractors"] == []
    assert len(found) == 12
    for channel in range(5):
        expected = wasserstein_distance(*(each[:, channel].ravel() for each in fields))
        assert found[f"wasserstein/channel_{channel}"] == pytest.approx(expected, rel=1e-5)
    assert found["spectrum_db"] == pytest.approx(6, abs=1.5)  # four times the power
    status, _, err = command("evaluate", "--images", images, "--reference", reference, "--accelerator", "cpu")
    assert status == 2
    assert "takes grayscale or RGB images, got 5 channels" in err


def test_16_bits_are_kept_and_compared_with_their_like_alone(command, tmp_path) -> None:
    pixels = RANDOM.integers(0, 65536, (6, 8, 8)).astype(np.uint16)
    images, shifted = save_all(tmp_path / "a", pixels // 2), save_all(tmp_path / "b", pixels // 2 + 300)
    found = evaluate(command, tmp_path / "out.json", "--images", images, "--reference", shifted)["metrics"]
    assert found["wasserstein"]["protocol"].startswith("no network")
    deviation = (pixels // 2).std()
    assert found["wasserstein"]["value"] * deviation == pytest.approx(300, rel=1e-4)
    assert found["spectrum_db"]["value"] < 1e-3, "a shift is the mean, which no ring has"
    bytes_ = save_all(tmp_path / "c", (pixels // 256).astype(np.uint8))
    words = ("--metrics", "marginals", "--accelerator", "cpu")
    status, _, err = command("evaluate", "--images", images, "--reference", bytes_, *words)
    assert status == 2
    assert "has values of uint8 and the evaluated images of int32" in err


def test_a_folder_that_can_be_trained_on_can_be_compared_with(command, tmp_path) -> None:
    photographs = RANDOM.integers(0, 256, (12, 24, 20, 3)).astype(np.uint8)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index, each in enumerate(photographs):
        Image.fromarray(each).save(folder / f"{index:03}.png")
    (folder / "damaged.png").write_bytes(b"no image")
    decoded = ImageFolder(3, 8, on_error="skip", max_skipped=0.1).open_all(folder).__getitems__(range(12))[0]
    images = tmp_path / "images"
    images.mkdir()
    for index, each in enumerate(decoded):
        Image.fromarray(each.permute(1, 2, 0).numpy()).save(images / f"{index:03}.png")
    where = ("--images", images, "--reference", folder)
    result = evaluate(command, tmp_path / "out.json", *where, "--size", 8, "--on_error", "skip", "--max_skipped", 0.1)
    assert result["reference"]["n"] == 12
    assert all(each["value"] == 0 for each in result["metrics"].values()), "the decoder of training"
    status, _, err = command("evaluate", *where, "--size", 8, "--metrics", "marginals", "--accelerator", "cpu")
    assert status == 2
    assert "skip them with --on_error skip" in err
    status, _, err = command("evaluate", *where, "--metrics", "marginals", "--accelerator", "cpu")
    assert status == 2
    assert "damaged.png" in err


@pytest.mark.parametrize("option", ["--images", "--reference"])
def test_a_folder_of_arrays_and_images_is_refused(option, command, tmp_path) -> None:
    pixels = RANDOM.integers(0, 256, (6, 8, 8)).astype(np.uint8)
    folders = {each: save_all(tmp_path / each[2:], pixels) for each in ("--images", "--reference")}
    np.save(folders[option] / "statistics.npy", np.zeros((1, 8, 8), np.uint8))
    words = [word for pair in folders.items() for word in pair]
    status, _, err = command("evaluate", *words, "--metrics", "marginals", "--accelerator", "cpu")
    expected = f"{folders[option]} holds arrays, such as {folders[option] / 'statistics.npy'}, and image files, such as"
    assert expected in get_error_sentence(status, err)


def test_a_classifier_of_other_channels_is_a_feature_network(tmp_path) -> None:
    values = {"dtype": "float32", "low": [0.0] * 5, "high": [2.0] * 5, "bounded": True}
    network = {"class_path": "lightning_ddpm.networks.SmallCNN", "init_args": {"channels": 5, "size": 8, "classes": 3}}
    config = {
        "class_path": "lightning_ddpm.models.image_classifier.ImageClassifier",
        "init_args": {"network": network, "values": values},
    }
    module = ImageClassifier(SmallCNN(5, 8, 3), values=ValueRange(**values))
    torch.save(build_checkpoint(module.state_dict(), build_hyper_parameters(config)), tmp_path / "classifier.ckpt")
    extractor = ClassifierFeatures(str(tmp_path / "classifier.ckpt"))
    check_extractor(extractor, (5, 8, 8), torch.float32)
    pixels = 2 * torch.rand(4, 5, 8, 8)
    torch.testing.assert_close(extractor(pixels), module.eval().network.embed(pixels - 1))
    with pytest.raises(UserError, match=r"needs images of float32 with values \[0, 0, 0, 0, 0\]\.\.\[2, 2, 2, 2, 2\]"):
        check_extractor(extractor, (5, 8, 8), torch.uint8)
