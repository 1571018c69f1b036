"""The feature networks of the digits, of DINOv2, of trained classifiers, and of the user."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.command_line import REPOSITORY, ddpm, read_yaml, write_yaml
from helpers.metrics import digits, load

from lightning_ddpm.data import Digits
from lightning_ddpm.metrics import (
    Antialiased,
    ClassifierFeatures,
    DigitsFeatures,
    DINOv2,
    FeatureExtractor,
    Inception,
)
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.errors import UserError


def test_digits_network_is_small_frozen_and_deterministic() -> None:
    assert DigitsFeatures.weights.stat().st_size < 400_000
    extractor = DigitsFeatures()
    extractor.load()
    real = digits(0, 20)
    assert torch.equal(extractor(real), extractor(real))
    assert not extractor(real).requires_grad
    assert extractor(real).shape == (20, extractor.num_features)


def test_shipped_network_classifies_held_out_digits() -> None:
    extractor = DigitsFeatures()
    extractor.load()
    images, labels = (Digits().open(Path("unused"), "test")).__getitems__(range(179))
    predictions = extractor.network(images / 127.5 - 1).argmax(1)
    assert (predictions == labels).float().mean() > 0.95, "on images that it was not trained on"
    assert torch.equal(extractor(images), extractor.network.embed(images / 127.5 - 1))


def test_modified_weights_of_the_digits_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "digits_features.pt"
    state = torch.load(DigitsFeatures.weights, weights_only=True)
    state["head.1.bias"][0] += 1e-3
    torch.save(state, changed)
    monkeypatch.setattr(DigitsFeatures, "weights", changed)
    with pytest.raises(UserError, match=r"not the file that was shipped; install the package again"):
        DigitsFeatures().load()


@pytest.mark.parametrize(("channels", "size"), [(3, 8), (1, 28)])
def test_digits_network_refuses_other_shapes(channels: int, size: int) -> None:
    with pytest.raises(UserError, match=f"takes images of 1x8x8, got {channels}x{size}x{size}; use Inception"):
        DigitsFeatures().check_images(channels, size)
    DigitsFeatures().check_images(1, 8)


@pytest.mark.parametrize("build", [DigitsFeatures, Inception, DINOv2, lambda: ClassifierFeatures("last.ckpt")])
def test_building_an_extractor_leaves_the_global_random_state_unchanged(build: Callable[[], FeatureExtractor]) -> None:
    torch.manual_seed(0)
    build()
    after = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(4))


def test_features_with_logits_equal_the_features_alone() -> None:
    extractor = load(DigitsFeatures())
    pixels = digits(0, 20)
    found, logits = extractor.features_and_logits(pixels)
    assert torch.equal(found, extractor(pixels))
    assert logits is not None
    assert torch.equal(logits, extractor.network(pixels / 127.5 - 1))  # type: ignore[operator]
    assert logits.shape == (20, extractor.classes)


def test_checkpoint_of_a_trained_classifier_is_a_feature_network(tmp_path: Path) -> None:
    config = read_yaml(REPOSITORY / "configs" / "digits_features.yaml")
    config["trainer"].update(default_root_dir=str(tmp_path / "run"), max_steps=2)
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert ended.returncode == 0, ended.stderr
    ckpt = tmp_path / "run" / "last.ckpt"
    extractor = ClassifierFeatures(str(ckpt), "mine")
    extractor.check_images(1, 8)
    assert extractor.metric == "fd_mine"
    network = SmallCNN(1, 8, 10).eval()
    weights = torch.load(ckpt, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
    found, logits = extractor.features_and_logits(digits(0, 5))
    assert torch.equal(found, network.embed(digits(0, 5) / 127.5 - 1))
    assert torch.equal(logits, network(digits(0, 5) / 127.5 - 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"last\.ckpt takes images of 1x8x8, got 3x32x32"):
        extractor.check_images(3, 32)


def test_missing_classifier_checkpoint_is_reported() -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint lost\.ckpt"):
        ClassifierFeatures("lost.ckpt").load()


def test_only_inception_takes_another_resize() -> None:
    with pytest.raises(UserError, match="DigitsFeatures has only one protocol; leave Antialiased out"):
        DigitsFeatures().with_resize(Antialiased())


@pytest.mark.usefixtures("offline")
def test_failed_download_of_dinov2_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"torch\.hub could not download dinov2-vit-s-14"):
        DINOv2("dinov2-vit-s-14").load()
    with pytest.raises(UserError, match="there is no DINOv2 model 'dinov3'"):
        DINOv2("dinov3")
