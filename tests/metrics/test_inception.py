"""Inception: its weights are the published ones; features and resizes match the programs they are named after."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.metrics import CPU, make_noise_images
from helpers.tiny import real_data
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from lightning_ddpm.metrics import TF1, Antialiased, Inception, MetricSuite, Resize, TorchMetrics
from lightning_ddpm.utils.errors import UserError

ROUNDING = {"atol": 5e-5, "rtol": 1e-5}
"""Of features, whose largest values are about 6: batch norms are folded into the convolutions."""


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.trace,)


def text(path: Path) -> None:
    path.write_text("no weights at all")


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def a_tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def other_keys(path: Path) -> None:
    torch.save({1: 2, "three": [4]}, path)


def other_weights(path: Path) -> None:
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path)


@pytest.mark.parametrize("write", [text, empty, truncated, a_tensor, other_keys, other_weights])
def test_other_files_are_refused_as_inceptions_weights_by_name(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth (is refused|does not hold)"):
        Inception(str(tmp_path / "weights.pth")).load()


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "it ran"
    torch.save({"weight": Malice(trace)}, path)
    with pytest.raises(UserError, match=r"evil\.pth is refused"):
        Inception(str(path)).load()
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file holds no code, so this test shows nothing"


def test_missing_weights_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*lost\.pth .* fix weights_path"):
        Inception(str(tmp_path / "lost.pth")).load()


@pytest.mark.usefixtures("offline")
def test_failed_download_names_three_fixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"\(1\) .*\(2\) .*weights_path.*\(3\) ") as error:
        Inception().load()
    assert str(tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth") in str(error.value)
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == [], "no partial file is left"


@pytest.mark.parametrize("channels", [2, 4])
def test_inception_takes_grayscale_and_rgb_only(channels: int) -> None:
    with pytest.raises(UserError, match=f"grayscale or RGB images, got {channels} channels"):
        Inception().check_images(channels, 32)
    Inception().check_images(1, 28)
    Inception().check_images(3, 32)


@pytest.fixture(scope="module")
def inception() -> Inception:
    """Return Inception with its real weights."""
    extractor = Inception(str(real_data("fid-inception-2015-12-05.pth")))
    extractor.load()
    return extractor


def test_one_changed_weight_of_inception_is_detected(tmp_path: Path, inception: Inception) -> None:
    state = torch.load(str(inception.weights_path), map_location="cpu", weights_only=True)
    state["Mixed_7c.branch_pool.conv.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="does not hold the FID's Inception weights"):
        Inception(str(tmp_path / "changed.pth")).load()


def test_inception_is_found_in_torch_hubs_cache(
    tmp_path: Path, inception: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(str(inception.weights_path))
    Inception().load()


@pytest.mark.parametrize("channels", [1, 3])
def test_inceptions_features_equal_torch_fidelitys_to_rounding(inception: Inception, channels: int) -> None:
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(inception.weights_path))
    pixels = torch.randint(0, 256, (2, channels, 32, 32), dtype=torch.uint8)
    features = inception(pixels)
    assert features.dtype == torch.float32
    assert features.shape == (2, inception.num_features)
    assert not features.requires_grad
    torch.testing.assert_close(features, own(pixels.repeat(1, 3 // channels, 1, 1))[0], **ROUNDING)


def test_features_keep_the_order_of_the_images_for_any_batch_size(inception: Inception) -> None:
    pixels = torch.randint(0, 256, (inception.cpu_batch_size + 1, 3, 32, 32), dtype=torch.uint8)
    alone = torch.cat([inception(each[None]) for each in pixels])
    torch.testing.assert_close(inception(pixels), alone, atol=1e-4, rtol=1e-4)
    assert (alone[0] - alone[-1]).abs().max() > 1e-2
    assert inception(pixels[:0]).shape == (0, inception.num_features)


def test_only_the_published_protocol_is_called_fid() -> None:
    called = {
        type(resize).__name__: Inception(resize=resize).metric for resize in (TF1(), Antialiased(), TorchMetrics())
    }
    assert called == {"TF1": "fid", "Antialiased": "fid_antialiased", "TorchMetrics": "fid_torchmetrics"}
    assert Inception().metric == "fid"
    assert len({Inception(resize=resize).protocol for resize in (TF1(), Antialiased(), TorchMetrics())}) == 3


@pytest.mark.parametrize("size", [32, 299, 500])
@pytest.mark.parametrize(
    ("resize", "kernel"), [(Antialiased(), Image.Resampling.BICUBIC), (TorchMetrics(), Image.Resampling.BILINEAR)]
)
def test_antialiased_resizes_match_pillow_on_floats(resize: Resize, kernel: Image.Resampling, size: int) -> None:
    """clean-fid: Image.fromarray(channel, "F").resize(..., BICUBIC).clip(0, 255)."""
    x = make_noise_images(size=size)
    channels = [Image.fromarray(each.numpy()).resize((299, 299), resample=kernel) for each in x.flatten(0, 1)]
    expected = torch.from_numpy(np.stack([np.asarray(each) for each in channels])).clip(0, 255)
    assert resize(x, 299).flatten(0, 1).sub(expected).abs().max() < 0.01  # on the scale of 0..255


@pytest.fixture(scope="module")
def weights_path() -> str:
    return str(real_data("fid-inception-2015-12-05.pth"))


@pytest.mark.slow
def test_each_protocol_matches_the_program_it_is_named_after(weights_path: str) -> None:
    pixels = make_noise_images().to(torch.uint8)
    published = Inception(weights_path)
    published.load()
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=weights_path)
    theirs = NoTrainInceptionV3("theirs", ["2048"], feature_extractor_weights_path=weights_path)
    found = {name: published.with_resize(resize)(pixels) for name, resize in (("tf1", TF1()), ("tm", TorchMetrics()))}
    torch.testing.assert_close(found["tf1"], own(pixels)[0], **ROUNDING)
    torch.testing.assert_close(found["tm"], theirs(pixels), **ROUNDING)
    antialiased = published.with_resize(Antialiased())
    assert antialiased.network is published.network
    assert (antialiased(pixels) - found["tf1"]).abs().max() > 1e-3


@pytest.mark.slow
def test_weights_without_the_published_class_layer_have_no_inception_score(weights_path: str) -> None:
    extractor = Inception(weights_path)
    extractor.load()
    if extractor.classes is None:  # the hash of the features does not cover the class layer
        with pytest.raises(UserError, match="has no logits: the network has no class layer"):
            MetricSuite(extractor, CPU, {"is"}, 100)
    own = FeatureExtractorInceptionV3("own", ["logits_unbiased"], feature_extractor_weights_path=weights_path)
    layer = torch.randn(own.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    for network in own, extractor.network:
        network.fc.weight.copy_(layer)
    extractor.classes = len(layer)
    pixels = make_noise_images().to(torch.uint8)
    torch.testing.assert_close(extractor.features_and_logits(pixels)[1], own(pixels)[0], atol=1e-3, rtol=1e-5)
