"""The Fréchet distance against its formula, its reference in the cache, and statistics in files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.metrics import CPU, digits, in_memory, make_statistics, show_nothing
from helpers.tiny import real_data
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.metrics import (
    DigitsFeatures,
    FeatureExtractor,
    FrechetDistance,
    Inception,
    Statistics,
    read_statistics,
    write_statistics,
)
from lightning_ddpm.utils.cache import write_cached
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError


class Pixels(FeatureExtractor):
    """Pixels as features; counts the images that pass through."""

    metric = "fd_pixels"

    def __init__(self, num_features: int, protocol: str = "pixels") -> None:
        super().__init__()
        self.num_features, self.protocol = num_features, protocol
        self.passed = 0

    def load(self) -> None:
        pass

    def check_images(self, channels: int, size: int) -> None:
        pass

    def forward(self, pixels: Tensor) -> Tensor:
        self.passed += len(pixels)
        return pixels.flatten(1).float() / 255


@pytest.fixture(autouse=True)
def reference_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test."""
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def make_distance(extractor: FeatureExtractor, data: MemoryDataset) -> FrechetDistance:
    """Return a distance to a dataset, on one rank."""
    extractor.load()
    distance = FrechetDistance(extractor, CPU)
    distance.set_reference(data, Ranks(), show_nothing)
    return distance


def measure(distance: FrechetDistance, images: Tensor) -> float:
    with torch.no_grad():
        distance.update(images)
    return distance.compute()


def make_images(values: np.ndarray) -> Tensor:
    """Return (n, k) numbers as images of k grayscale pixels."""
    return torch.from_numpy(values.clip(0, 255).round().astype(np.uint8))[:, None, None]


def compute_by_formula(first: np.ndarray, second: np.ndarray) -> float:
    """Compute |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)); Heusel et al. 2017."""
    root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T)).real
    means = first.mean(0) - second.mean(0)
    return float(means @ means + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * root))


def test_distance_of_pixels_matches_the_formula() -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(4, 4))
    real = make_images(128 + 20 * generator.normal(size=(301, 4)) @ mixing)
    generated = make_images(140 + 30 * generator.normal(size=(777, 4)))
    expected = compute_by_formula(*(each.flatten(1).double().numpy() / 255 for each in (real, generated)))
    assert measure(make_distance(Pixels(4), in_memory(real)), generated) == pytest.approx(expected, rel=1e-5)


def test_distance_of_a_set_to_itself_is_zero() -> None:
    real = digits(0, 1000)
    assert abs(measure(make_distance(DigitsFeatures(), in_memory(real)), real)) < 1e-3


def test_distance_grows_as_images_get_worse() -> None:
    distance = make_distance(DigitsFeatures(), in_memory(digits(0, 1600)[0::2]))
    other = digits(0, 1600)[1::2]
    noise = torch.randint(-60, 61, other.shape, generator=torch.Generator().manual_seed(0))
    noisy = (other.int() + noise).clamp(0, 255).to(torch.uint8)
    assert measure(distance, other) < measure(distance, noisy) < measure(distance, torch.zeros_like(other))


def test_compute_resets_the_images_and_keeps_the_reference() -> None:
    distance = make_distance(DigitsFeatures(), in_memory(digits(0, 500)))
    first = measure(distance, digits(500, 700))
    assert measure(distance, digits(700, 1000)) != first
    assert measure(distance, digits(500, 700)) == first


def test_cache_holds_mean_and_covariance_of_the_features(reference_cache: Path) -> None:
    real = digits(0, 333)
    distance = make_distance(Pixels(64), in_memory(real))
    (path,) = reference_cache.iterdir()
    assert path == distance.get_cache_path(in_memory(real))
    features = real.flatten(1).double().numpy() / 255
    with np.load(path, allow_pickle=False) as file:
        assert file["n"] == 333
        np.testing.assert_allclose(file["mu"], features.mean(0), atol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features.T), atol=1e-6)


def test_cached_reference_is_used_and_gives_the_same_distance(reference_cache: Path) -> None:
    extractor, real, generated = Pixels(64), in_memory(digits(0, 500)), digits(500, 900)
    first = measure(make_distance(extractor, real), generated)
    (path,) = reference_cache.iterdir()
    content, passed = path.read_bytes(), extractor.passed
    second = make_distance(extractor, real)
    assert extractor.passed == passed, "no image of the reference went through the network again"
    assert measure(second, generated) == pytest.approx(first, rel=1e-9)
    assert path.read_bytes() == content


def test_distance_uses_the_content_of_the_cache(reference_cache: Path) -> None:
    real = in_memory(make_images(np.full((10, 4), 51.0)))
    make_distance(Pixels(4), real)
    (path,) = reference_cache.iterdir()
    write_statistics(path, Statistics(np.zeros(4), np.zeros((4, 4)), 10))
    write_cached(path, path.read_bytes())
    zeros = torch.zeros(10, 1, 1, 4, dtype=torch.uint8)
    assert measure(make_distance(Pixels(4), real), zeros) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_cache_file_is_reported_and_computed_again(
    reference_cache: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    real, generated = in_memory(digits(0, 300)), digits(300, 600)
    first = measure(make_distance(Pixels(64), real), generated)
    (path,) = reference_cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert capsys.readouterr().out == ""
    assert measure(make_distance(Pixels(64), real), generated) == first
    assert path.read_bytes() == whole
    assert capsys.readouterr().out.startswith(f"computed again: {path} is damaged")


FILL_CACHES = """
import os, sys, time
from pathlib import Path
import torch
from lightning_ddpm.data import Digits
from lightning_ddpm.metrics import FrechetDistance, ModuleFeatures, read_statistics
from lightning_ddpm.utils.cache import write_cached
from lightning_ddpm.utils.distributed import Ranks

folder, me, other, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 512))
extractor = ModuleFeatures(network, num_features=512, name="wide")
data = Digits().open(folder, "train")
show = lambda batches, total: (batch for _, batch in batches)
for index in range(rounds):
    os.environ["LIGHTNING_DDPM_CACHE"] = str(folder / str(index))
    (folder / f"{index}-{me}").touch()
    until = time.monotonic() + 200
    while not (folder / f"{index}-{other}").exists():
        assert time.monotonic() < until, "the other process ended"
        time.sleep(0.001)
    distance = FrechetDistance(extractor, torch.device("cpu"))
    distance.set_reference(data, Ranks(), show)
    sums = distance.metric.real_features_sum, distance.metric.real_features_cov_sum
    (folder / f"{index}-{me}-filled").touch()
    while True:  # keep reading while the other process writes
        last = (folder / f"{index}-{other}-filled").exists()
        kept = read_statistics(distance.get_cache_path(data))  # NumPy reads it, too
        if last:
            break
        assert time.monotonic() < until, "the other process ended"
    torch.save([*sums, torch.from_numpy(kept.mu), torch.from_numpy(kept.sigma)], folder / f"{index}-{me}.pt")
"""


@pytest.mark.slow
def test_two_processes_that_fill_the_same_cache_at_once_both_get_the_right_reference(tmp_path: Path) -> None:
    rounds = 5
    arguments = ([sys.executable, "-c", FILL_CACHES, str(tmp_path), *who, str(rounds)] for who in ("ab", "ba"))
    both = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in arguments]
    try:
        for process in both:
            assert process.communicate(timeout=300) == ("", "")  # no process read a damaged file either
            assert process.returncode == 0
    finally:
        for process in both:
            process.kill()
    expected = torch.load(tmp_path / "0-a.pt")
    n = len(Digits().open(tmp_path, "train"))
    torch.testing.assert_close(expected[0] / n, expected[2])
    for index in range(rounds):
        for who in "ab":
            torch.testing.assert_close(torch.load(tmp_path / f"{index}-{who}.pt"), expected)
        (kept,) = (tmp_path / str(index) / "reference").iterdir()  # and no half-written file beside it
        with np.load(kept, allow_pickle=False) as file:
            np.testing.assert_allclose(file["mu"], expected[2])
            assert file["n"] == n


def test_other_images_and_other_networks_have_other_cache_files(reference_cache: Path) -> None:
    for extractor, data in [
        (Pixels(64), in_memory(digits(0, 300))),
        (Pixels(64), in_memory(digits(0, 299))),
        (Pixels(64), in_memory(digits(0, 300).flip(-1))),
        (Pixels(64, "other pixels"), in_memory(digits(0, 300))),
        (DigitsFeatures(), in_memory(digits(0, 300))),
    ]:
        make_distance(extractor, data)
    assert len(list(reference_cache.iterdir())) == 5


def test_statistics_are_read_back_also_under_the_keys_of_pytorch_fid_and_adm(tmp_path: Path) -> None:
    mu, sigma, n = make_statistics(5)
    write_statistics(tmp_path / "own.npz", Statistics(mu, sigma, n))
    with np.load(tmp_path / "own.npz") as file:
        assert (file["mu"] == mu).all()
        assert (file["sigma"] == sigma).all()
    np.savez_compressed(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma, arr_0=np.zeros((3, 2, 2, 3), np.uint8))
    for name, count in ("own", 50), ("pytorch_fid", 0), ("adm", 0):
        found = read_statistics(tmp_path / f"{name}.npz")
        assert (found.mu == mu).all()
        assert (found.sigma == sigma).all()
        assert found.n == count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": np.zeros(3)}, "its keys are mean, expected mu and sigma"),
        (
            {"mu": np.zeros(3), "sigma": np.zeros((4, 4))},
            r"mu of shape \(3,\) and sigma of shape \(4, 4\) do not match",
        ),
        ({"mu": np.full(3, np.nan), "sigma": np.zeros((3, 3))}, "holds NaN or infinity"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.zeros((1, 1))}, "is not an npz file, or damaged"),
    ],
)
def test_invalid_statistics_are_refused(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "stats.npz", **content)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "stats.npz")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_damaged_file_of_statistics_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stats.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"stats\.npz is not an npz file, or damaged"):
        read_statistics(tmp_path / "stats.npz")
    with pytest.raises(UserError, match=r"there is no file .*lost\.npz"):
        read_statistics(tmp_path / "lost.npz")


@pytest.fixture(scope="module")
def inception() -> Inception:
    """Return Inception with its real weights."""
    extractor = Inception(str(real_data("fid-inception-2015-12-05.pth")))
    extractor.load()
    return extractor


def low_rank_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the formula for fewer images than features: tr (S_1 S_2)^(1/2) is the nuclear norm of X_1 X_2^T."""
    centred = [(each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (first, second)]
    means = first.mean(0) - second.mean(0)
    traces = sum(float((each**2).sum()) for each in centred)
    return float(means @ means + traces - 2 * np.linalg.norm(centred[0] @ centred[1].T, "nuc"))


class TruncatedInception(Pixels):
    """Inception's first features: the eigenvalues of all 2048 take minutes on one core."""

    def __init__(self, inception: Inception, num_features: int) -> None:
        super().__init__(num_features, "part of Inception")
        self.inception = inception

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inception(pixels)[:, : self.num_features]


@pytest.mark.slow
def test_distance_of_two_classes_matches_that_of_torch_fidelitys_features(inception: Inception) -> None:
    # With all features and torch_fidelity.calculate_metrics the distances agree, too, but that takes minutes.
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(inception.weights_path))
    sets = []
    for name in ("airplane", "frog"):
        paths = sorted(real_data(f"cifar10/test/{name}").glob("*.png"))[:12]
        sets.append(torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]))
    expected = low_rank_distance(*(own(each)[0][:, :200].double().numpy() for each in sets))
    assert expected > 1
    distance = make_distance(TruncatedInception(inception, 200), in_memory(sets[1]))
    assert measure(distance, sets[0]) == pytest.approx(expected, rel=1e-4)
