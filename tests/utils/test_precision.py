"""Features are computed in float32, whatever precision the user allows for training."""

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from lightning_ddpm.data import Digits
from lightning_ddpm.metrics import FrechetDistance, MetricSuite, ModuleFeatures, extract_features
from lightning_ddpm.metrics.nearest_neighbours import find_nearest
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.precision import compute_exactly


@pytest.fixture
def allow_tf32():
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


class Probe(nn.Module):
    """Records the settings that it is called under."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, str]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return x.flatten(1)


def test_the_settings_are_restored_after_an_exception(allow_tf32):
    with suppress(RuntimeError), compute_exactly():
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
        raise RuntimeError
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")


@pytest.mark.parametrize("way", ["suite", "distance", "features", "nearest"])
def test_features_are_computed_without_tf32(way, allow_tf32, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path))
    probe, digits = Probe(), Digits().open(tmp_path, "test")
    extractor, device = ModuleFeatures(probe, 64, "probe"), torch.device("cpu")
    pixels = digits.__getitems__(range(40))[0]
    if way == "suite":
        suite = MetricSuite(extractor, device, ["fid", "kid"], 40)
        suite.set_reference(digits, None, Ranks(), lambda batches, total: (each for _, each in batches))
        suite.update(0, pixels)
    elif way == "distance":
        FrechetDistance(extractor, device).update(pixels)
    elif way == "features":
        extract_features(extractor, device, 40, iter([(0, pixels)]), Ranks())
    else:
        find_nearest(extractor, pixels.flatten(1).float(), 1, digits, digits, Ranks(), lambda b, n: (e for _, e in b))
    assert probe.seen == {(False, "highest")}
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
