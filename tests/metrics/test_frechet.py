"""The Fréchet distance against its formula, and feature networks that are what they say."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.tiny import real_data
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.metrics import DigitsFeatures, DINOv2, FeatureExtractor, FrechetDistance, Inception
from lightning_ddpm.metrics.classifier_features import ClassifierFeatures
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

CPU = torch.device("cpu")


class Pixels(FeatureExtractor):
    """Pixels as features; counts the images that it has seen."""

    metric = "fd_pixels"

    def __init__(self, num_features: int, protocol: str = "pixels") -> None:
        super().__init__()
        self.num_features, self.protocol = num_features, protocol
        self.seen = 0

    def load(self) -> None:
        pass

    def check_images(self, channels: int, size: int) -> None:
        pass

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return pixels.flatten(1).float() / 255


@pytest.fixture(autouse=True)
def reference_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for one test."""
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def silent(batches: Iterable[tuple[int, Tensor]], total: int) -> Iterator[Tensor]:
    """Shows nothing."""
    yield from (batch for _, batch in batches)


def against(extractor: FeatureExtractor, data: MemoryDataset) -> FrechetDistance:
    """A distance to a data set, on one rank."""
    extractor.load()
    distance = FrechetDistance(extractor, CPU)
    distance.set_reference(data, Ranks(), silent)
    return distance


def measure(distance: FrechetDistance, images: Tensor) -> float:
    with torch.no_grad():
        distance.update(images)
    return distance.compute()


def images_of(values: np.ndarray) -> Tensor:
    """(n, k) numbers as images of k grey pixels."""
    return torch.from_numpy(values.clip(0, 255).round().astype(np.uint8))[:, None, None]


def memory(images: Tensor) -> MemoryDataset:
    return MemoryDataset(images, torch.full((len(images),), -1))


def digits(start: int, stop: int) -> Tensor:
    return Digits().open(Path("unused"), "train").__getitems__(range(start, stop))[0]


def by_the_formula(first: np.ndarray, second: np.ndarray) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)); Heusel et al. 2017."""
    root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T)).real
    means = first.mean(0) - second.mean(0)
    return float(means @ means + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * root))


# the distance


def test_the_distance_of_pixels_is_that_of_the_formula() -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(4, 4))
    real = images_of(128 + 20 * generator.normal(size=(301, 4)) @ mixing)
    made = images_of(140 + 30 * generator.normal(size=(777, 4)))
    expected = by_the_formula(*(each.flatten(1).double().numpy() / 255 for each in (real, made)))
    assert measure(against(Pixels(4), memory(real)), made) == pytest.approx(expected, rel=1e-5)


def test_a_shift_of_all_images_is_its_length_squared() -> None:
    real = torch.randint(0, 200, (500, 1, 2, 2), dtype=torch.uint8)
    distance = against(Pixels(4), memory(real))
    assert measure(distance, real + 51) == pytest.approx(4 * 0.2**2, rel=1e-5)


def test_the_distance_of_digits_features_is_that_of_the_formula() -> None:
    extractor = DigitsFeatures()
    real, made = digits(0, 800), 255 - digits(800, 1500)
    distance = measure(against(extractor, memory(real)), made)
    with torch.no_grad():
        features = [extractor(each).double().numpy() for each in (real, made)]
    assert distance == pytest.approx(by_the_formula(*features), rel=1e-4)


def test_a_set_has_no_distance_to_itself() -> None:
    real = digits(0, 1000)
    assert abs(measure(against(DigitsFeatures(), memory(real)), real)) < 1e-3


def test_worse_images_are_further_away() -> None:
    distance = against(DigitsFeatures(), memory(digits(0, 1600)[0::2]))
    other = digits(0, 1600)[1::2]
    noise = torch.randint(-60, 61, other.shape, generator=torch.Generator().manual_seed(0))
    noisy = (other.int() + noise).clamp(0, 255).to(torch.uint8)
    assert measure(distance, other) < measure(distance, noisy) < measure(distance, torch.zeros_like(other))


def test_after_a_result_the_images_are_forgotten_and_the_reference_is_kept() -> None:
    distance = against(DigitsFeatures(), memory(digits(0, 500)))
    first = measure(distance, digits(500, 700))
    assert measure(distance, digits(700, 1000)) != first
    assert measure(distance, digits(500, 700)) == first


def test_how_the_images_are_split_into_updates_changes_nothing() -> None:
    distance = against(Pixels(64), memory(digits(0, 500)))
    whole = measure(distance, digits(500, 900))
    for start, stop in (500, 501), (501, 700), (700, 900):
        distance.update(digits(start, stop))
    assert distance.compute() == pytest.approx(whole, rel=1e-6)


# the reference in the cache


def test_the_cache_holds_mean_and_covariance_of_the_features(reference_cache: Path) -> None:
    real = digits(0, 333)
    distance = against(Pixels(64), memory(real))
    (path,) = reference_cache.iterdir()
    assert path == distance.cache_path(memory(real))
    features = real.flatten(1).double().numpy() / 255
    with np.load(path, allow_pickle=False) as file:
        assert file["n"] == 333
        np.testing.assert_allclose(file["mu"], features.mean(0), atol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features.T), atol=1e-6)


def test_the_cached_reference_is_used_and_gives_the_same_distance(reference_cache: Path) -> None:
    extractor, real, made = Pixels(64), memory(digits(0, 500)), digits(500, 900)
    first = measure(against(extractor, real), made)
    (path,) = reference_cache.iterdir()
    kept, seen = path.read_bytes(), extractor.seen
    second = against(extractor, real)
    assert extractor.seen == seen, "no image of the reference went through the network again"
    assert measure(second, made) == pytest.approx(first, rel=1e-9)
    assert path.read_bytes() == kept


def test_the_cache_s_content_is_what_is_used(reference_cache: Path) -> None:
    real = memory(images_of(np.full((10, 4), 51.0)))
    against(Pixels(4), real)
    (path,) = reference_cache.iterdir()
    np.savez(path, mu=np.zeros(4), sigma=np.zeros((4, 4)), n=10)
    zeros = torch.zeros(10, 1, 1, 4, dtype=torch.uint8)
    assert measure(against(Pixels(4), real), zeros) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cache_file_cut_short_is_said_and_computed_again(
    reference_cache: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    real, made = memory(digits(0, 300)), digits(300, 600)
    first = measure(against(Pixels(64), real), made)
    (path,) = reference_cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert capsys.readouterr().out == ""
    assert measure(against(Pixels(64), real), made) == first
    assert path.read_bytes() == whole
    assert capsys.readouterr().out.startswith(f"computed again: {path} is no npz file of statistics, or damaged")


FILL_CACHES = """
import os, sys, time
from pathlib import Path
import torch
from lightning_ddpm.data import Digits
from lightning_ddpm.metrics import FrechetDistance, ModuleFeatures, read_statistics

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
        assert time.monotonic() < until, "the other process is gone"
        time.sleep(0.001)
    distance = FrechetDistance(extractor, torch.device("cpu"))
    distance.set_reference(data, Ranks(), show)
    sums = distance.metric.real_features_sum, distance.metric.real_features_cov_sum
    (folder / f"{index}-{me}-filled").touch()
    while True:  # read on while the other writes
        last = (folder / f"{index}-{other}-filled").exists()
        kept = read_statistics(distance.cache_path(data))
        if last:
            break
        assert time.monotonic() < until, "the other process is gone"
    torch.save([*sums, torch.from_numpy(kept.mu), torch.from_numpy(kept.sigma)], folder / f"{index}-{me}.pt")
"""


def test_two_processes_that_fill_the_same_cache_at_once_both_have_the_right_reference(tmp_path: Path) -> None:
    rounds = 5
    arguments = ([sys.executable, "-c", FILL_CACHES, str(tmp_path), *who, str(rounds)] for who in ("ab", "ba"))
    both = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in arguments]
    try:
        for process in both:
            assert process.communicate(timeout=300) == ("", "")  # nobody met a damaged file either
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


def test_other_images_and_other_networks_have_other_caches(reference_cache: Path) -> None:
    for extractor, data in [
        (Pixels(64), memory(digits(0, 300))),
        (Pixels(64), memory(digits(0, 299))),
        (Pixels(64), memory(digits(0, 300).flip(-1))),
        (Pixels(64, "other pixels"), memory(digits(0, 300))),
        (DigitsFeatures(), memory(digits(0, 300))),
    ]:
        against(extractor, data)
    assert len(list(reference_cache.iterdir())) == 5


# the digits' feature network


def test_the_digits_network_is_small_frozen_and_without_chance() -> None:
    assert DigitsFeatures.weights.stat().st_size < 400_000
    extractor = DigitsFeatures()
    extractor.load()
    real = digits(0, 20)
    assert torch.equal(extractor(real), extractor(real))
    assert not extractor(real).requires_grad
    assert extractor(real).shape == (20, extractor.num_features)


def test_the_shipped_network_reads_digits() -> None:
    extractor = DigitsFeatures()
    extractor.load()
    images, labels = (Digits().open(Path("unused"), "test")).__getitems__(range(179))
    verdicts = extractor.network(images / 127.5 - 1).argmax(1)
    assert (verdicts == labels).float().mean() > 0.95, "on images that it was not trained on"
    assert torch.equal(extractor(images), extractor.network.embed(images / 127.5 - 1))


def test_a_changed_copy_of_the_digits_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "digits_features.pt"
    state = torch.load(DigitsFeatures.weights, weights_only=True)
    state["head.1.bias"][0] += 1e-3
    torch.save(state, changed)
    monkeypatch.setattr(DigitsFeatures, "weights", changed)
    with pytest.raises(UserError, match=r"not the file that was shipped; install the package again"):
        DigitsFeatures().load()


@pytest.mark.parametrize(("channels", "size"), [(3, 8), (1, 28)])
def test_the_digits_network_judges_nothing_else(channels: int, size: int) -> None:
    with pytest.raises(UserError, match=f"judges images of 1x8x8, got {channels}x{size}x{size}; use Inception"):
        DigitsFeatures().check_images(channels, size)
    DigitsFeatures().check_images(1, 8)


# Inception


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
def test_what_is_not_inception_s_weights_is_refused_by_name(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth (is refused|does not hold)"):
        Inception(str(tmp_path / "weights.pth")).load()


def test_code_in_inception_s_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "it ran"
    torch.save({"weight": Malice(trace)}, path)
    with pytest.raises(UserError, match=r"evil\.pth is refused"):
        Inception(str(path)).load()
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file holds no code: this test proves nothing"


def test_a_weights_path_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*lost\.pth .* mend weights_path"):
        Inception(str(tmp_path / "lost.pth")).load()


@pytest.mark.usefixtures("offline")
def test_without_weights_and_network_there_are_three_ways_out(tmp_path: Path) -> None:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    try:
        with pytest.raises(UserError, match=r"\(1\) .*\(2\) .*weights_path.*\(3\) ") as error:
            Inception().load()
    finally:
        torch.hub.set_dir(before)
    assert str(tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth") in str(error.value)
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == [], "no half of a file is left"


@pytest.mark.parametrize("channels", [2, 4])
def test_inception_judges_grey_and_rgb_only(channels: int) -> None:
    with pytest.raises(UserError, match=f"grey or RGB images, got {channels} channels"):
        Inception().check_images(channels, 32)
    Inception().check_images(1, 28)
    Inception().check_images(3, 32)


@pytest.fixture(scope="module")
def inception() -> Inception:
    """Inception with its real weights."""
    extractor = Inception(str(real_data("fid-inception-2015-12-05.pth")))
    extractor.load()
    return extractor


def test_one_changed_weight_of_inception_is_noticed(tmp_path: Path, inception: Inception) -> None:
    state = torch.load(str(inception.weights_path), map_location="cpu", weights_only=True)
    state["Mixed_7c.branch_pool.conv.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="does not hold the FID's Inception weights"):
        Inception(str(tmp_path / "changed.pth")).load()


def test_inception_is_found_in_torch_hub_s_cache(tmp_path: Path, inception: Inception) -> None:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    cached = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.symlink_to(str(inception.weights_path))
    try:
        Inception().load()
    finally:
        torch.hub.set_dir(before)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_s_features_are_torch_fidelity_s_own(inception: Inception, channels: int) -> None:
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(inception.weights_path))
    pixels = torch.randint(0, 256, (2, channels, 32, 32), dtype=torch.uint8)
    features = inception(pixels)
    assert features.dtype == torch.float32
    assert features.shape == (2, inception.num_features)
    assert not features.requires_grad
    assert torch.equal(features, own(pixels.repeat(1, 3 // channels, 1, 1))[0])


def test_inception_s_features_come_in_the_images_order_however_many_go_together(inception: Inception) -> None:
    pixels = torch.randint(0, 256, (inception.at_a_time + 1, 3, 32, 32), dtype=torch.uint8)
    alone = torch.cat([inception(each[None]) for each in pixels])
    torch.testing.assert_close(inception(pixels), alone, atol=1e-4, rtol=1e-4)
    assert (alone[0] - alone[-1]).abs().max() > 1e-2
    assert inception(pixels[:0]).shape == (0, inception.num_features)


def low_rank_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The formula for fewer images than features: tr (S_1 S_2)^(1/2) is the nuclear norm of X_1 X_2^T, X centred."""
    centred = [(each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (first, second)]
    means = first.mean(0) - second.mean(0)
    traces = sum(float((each**2).sum()) for each in centred)
    return float(means @ means + traces - 2 * np.linalg.norm(centred[0] @ centred[1].T, "nuc"))


class FewOfInception(Pixels):
    """The first of Inception's features: the eigenvalues of all 2048 take minutes on one core."""

    def __init__(self, inception: Inception, num_features: int) -> None:
        super().__init__(num_features, "a part of Inception")
        self.inception = inception

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inception(pixels)[:, : self.num_features]


@pytest.mark.slow
def test_the_distance_of_two_classes_is_that_of_torch_fidelity_s_features(inception: Inception) -> None:
    # With all features and torch_fidelity.calculate_metrics the figures agree likewise, in minutes.
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(inception.weights_path))
    sets = []
    for name in ("airplane", "frog"):
        paths = sorted(real_data(f"cifar10/test/{name}").glob("*.png"))[:12]
        sets.append(torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]))
    expected = low_rank_distance(*(own(each)[0][:, :200].double().numpy() for each in sets))
    assert expected > 1
    distance = against(FewOfInception(inception, 200), memory(sets[1]))
    assert measure(distance, sets[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("made", [DigitsFeatures, Inception, DINOv2, lambda: ClassifierFeatures("last.ckpt")])
def test_what_judges_a_run_does_not_change_its_initial_weights(made):
    torch.manual_seed(0)
    made()
    after = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(4))
