"""Figures against torch-fidelity's own arithmetic and closed forms; protocols against what they are named after."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import REPOSITORY, ddpm, read_yaml, write_yaml
from helpers.tiny import real_data
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import NoTrainInceptionV3

from lightning_ddpm.data import Digits, MemoryDataset
from lightning_ddpm.metrics import (
    TF1,
    Antialiased,
    ClassifierFeatures,
    DigitsFeatures,
    DINOv2,
    FeatureExtractor,
    Inception,
    MetricSuite,
    MetricValue,
    ModuleFeatures,
    RequestedClasses,
    Resize,
    Statistics,
    TorchMetrics,
    read_statistics,
    write_statistics,
)
from lightning_ddpm.metrics.suite import (
    inception_score,
    is_higher_better,
    kernel_distance,
    map_metric_names,
    precision_recall,
)
from lightning_ddpm.networks import SmallCNN
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def reference_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for one test."""
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def silent(batches: Iterable[tuple[int, object]], total: int) -> Iterator[object]:
    """Shows nothing."""
    yield from (batch for _, batch in batches)




def digits(start: int, stop: int) -> Tensor:
    return Digits().open(Path("unused"), "train").__getitems__(range(start, stop))[0]


def memory(images: Tensor) -> MemoryDataset:
    return MemoryDataset(images, torch.full((len(images),), -1))


def loaded(extractor: FeatureExtractor) -> FeatureExtractor:
    extractor.load()
    return extractor


def measure(
    made: Tensor,
    real: Tensor,
    metrics: Iterable[str] = ("fid", "kid", "pr", "is"),
    extractor: FeatureExtractor | None = None,
    batch: int = 64,
    classes: RequestedClasses | None = None,
) -> dict[str, MetricValue]:
    """All figures on one rank, the images handed over in batches of this size."""
    figures = MetricSuite(loaded(extractor or DigitsFeatures()), CPU, set(metrics), len(made), classes)
    figures.set_reference(memory(real), None, Ranks(), silent)
    for start in range(0, len(made), batch):
        figures.update(start, made[start : start + batch])
    return figures.compute(Ranks())


def features(n: int, width: int = 32, shift: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


# against torch-fidelity


def test_every_figure_is_torch_fidelity_s_own() -> None:
    extractor = loaded(DigitsFeatures())
    real, made = digits(0, 1010), 255 - digits(400, 1600)
    with torch.no_grad():
        (x, logits), y = extractor.features_and_logits(made), extractor(real)
    assert logits is not None
    found = measure(made, real)
    statistics = [fid_features_to_statistics(each) for each in (x, y)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(x, y, verbose=False)
    pr = prc_features_to_metric(x, y, verbose=False)
    score = isc_features_to_metric(logits)
    assert found == {
        "fd_digits": (pytest.approx(fid, rel=1e-3), None),
        "kd_digits": (
            pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3),
            pytest.approx(kid["kernel_inception_distance_std"], rel=1e-2),
        ),
        "precision_digits": (pytest.approx(pr["precision"], abs=1e-3), None),
        "recall_digits": (pytest.approx(pr["recall"], abs=1e-3), None),
        "classifier_score_digits": (
            pytest.approx(score["inception_score_mean"], rel=1e-5),
            pytest.approx(score["inception_score_std"], rel=1e-3),
        ),
    }


def test_precision_and_recall_in_parts_are_those_of_the_whole_matrix() -> None:
    x, y = features(777), features(1111, shift=0.3, seed=1)
    whole = prc_features_to_metric(x, y, verbose=False)
    precision, recall = precision_recall(x, y)
    assert precision.value == pytest.approx(whole["precision"], abs=2e-3)
    assert recall.value == pytest.approx(whole["recall"], abs=2e-3)


# closed forms


def test_the_kernel_distance_of_equal_distributions_is_nothing_beside_its_deviation() -> None:
    value, std = kernel_distance(features(3000), features(3000, seed=1))
    assert std is not None
    assert abs(value) < std


def test_the_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    x, y = features(40, 4), features(40, 4, shift=0.5, seed=1)
    k = [((a @ b.T / 4 + 1) ** 3).double() for a, b in ((x, x), (y, y), (x, y))]
    within = sum(float(each.sum() - each.trace()) / (40 * 39) for each in k[:2])
    value, std = kernel_distance(x, y)  # one subset: all of them
    assert value == pytest.approx(within - 2 * float(k[2].mean()), rel=1e-4)
    assert std == pytest.approx(0, abs=1e-5)


def test_far_away_sets_have_neither_precision_nor_recall_and_equal_ones_have_all() -> None:
    x = features(300)
    assert precision_recall(x, x + 1000) == ((0.0, None), (0.0, None))
    assert precision_recall(x, x) == ((1.0, None), (1.0, None))


def test_a_part_of_the_set_has_precision_but_not_recall() -> None:
    real = torch.cat([features(200, 3), features(200, 3, shift=100.0)])
    precision, recall = precision_recall(features(200, 3, seed=1), real)
    assert precision.value > 0.8
    assert recall.value < 0.55


def test_the_inception_score_of_sure_verdicts_is_the_number_of_classes_and_of_equal_ones_one() -> None:
    sure = 50 * torch.eye(5).repeat(2000, 1)
    assert inception_score(sure).value == pytest.approx(5, rel=0.01)
    assert inception_score(torch.zeros(100, 5)) == (pytest.approx(1), pytest.approx(0))


def test_identical_sets_have_no_distance() -> None:
    real = digits(0, 1000)
    found = measure(real, real)
    assert abs(found["fd_digits"].value) < 1e-3
    assert found["precision_digits"].value == found["recall_digits"].value == 1


# one pass, in the order of the images, on any number of ranks


class Counting(ModuleFeatures):
    """Pixels as features; counts the images that it sees."""

    seen = 0

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), 64, "pixels")

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return super().forward(pixels)


def test_every_image_passes_the_network_once() -> None:
    extractor = Counting()
    measure(digits(300, 700), digits(0, 300), {"fid", "kid", "pr"}, extractor)
    assert extractor.seen == 400 + 300


def test_how_images_are_split_into_updates_changes_nothing() -> None:
    whole, parts = (measure(digits(500, 900), digits(0, 500), batch=batch) for batch in (400, 64))
    assert whole == parts


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_share_the_images_out_find_the_same_as_one(world: int) -> None:
    made, real, metrics = digits(500, 1001), digits(0, 500), {"kid", "pr", "is"}
    alone = measure(made, real, metrics)
    ranks = [MetricSuite(loaded(DigitsFeatures()), CPU, metrics, len(made)) for _ in range(world)]
    for index, start in enumerate(range(0, len(made), 64)):
        ranks[index % world].update(start, made[start : start + 64])
    gathered = [sum(parts) for parts in zip(*((r.features.rows, r.logits.rows) for r in ranks), strict=True)]
    ranks[0].features.rows, ranks[0].logits.rows = gathered
    ranks[0].set_reference(memory(real), None, Ranks(), silent)
    assert ranks[0].compute(Ranks()) == alone
    assert ranks[1].compute(Ranks(1, 2)) == {}


TEN = [f"digit {label}" for label in range(10)]


def test_accuracy_is_scikit_learn_s_of_all_images_and_of_each_class() -> None:
    source, asked = Digits().open(Path("unused"), "train"), range(300)
    pixels, labels = source.__getitems__(asked)
    labels = torch.where(torch.arange(300) % 7 == 0, 3, labels)  # asked for a 3, whatever it is
    labels[labels == 9] = 8  # nobody asks for a 9
    found = measure(pixels, digits(0, 50), {"accuracy"}, classes=RequestedClasses(labels, TEN))
    verdicts = loaded(DigitsFeatures()).features_and_logits(pixels)[1].argmax(1)
    by_class = recall_score(labels, verdicts, average=None, labels=range(9), zero_division=0)
    expected = {"accuracy_digits": accuracy_score(labels, verdicts)}
    expected |= {f"accuracy_digits/digit {label}": share for label, share in enumerate(by_class)}
    assert {name: each.value for name, each in found.items()} == pytest.approx(expected)
    assert 0.1 < found["accuracy_digits/digit 3"].value < found["accuracy_digits/digit 1"].value == 1
    assert is_higher_better("accuracy_digits/digit 3")


def test_accuracy_without_classes_or_by_a_classifier_of_others_is_refused() -> None:
    with pytest.raises(UserError, match="a class was asked of, and these have none; leave it out, or draw them from"):
        measure(digits(0, 20), digits(0, 20), {"accuracy"})
    three = RequestedClasses(torch.zeros(20, dtype=torch.long), ["cat", "dog", "bird"])
    with pytest.raises(UserError, match=r"tells 10 classes apart and the model has 3 \(cat, dog, bird\); let a class"):
        measure(digits(0, 20), digits(0, 20), {"accuracy"}, classes=three)
    with pytest.raises(UserError, match=r"no verdicts to score, .* leave `accuracy` out"):
        measure(digits(0, 20), digits(0, 20), {"accuracy"}, ModuleFeatures(nn.Flatten(), 64, "pixels"), classes=three)


# names


def test_a_figure_s_name_says_network_and_protocol() -> None:
    assert map_metric_names("fid") == {
        "fid": "fid",
        "kid": "kid",
        "precision": "precision_inception",
        "recall": "recall_inception",
        "is": "inception_score",
        "accuracy": "accuracy_inception",
        "memorisation": "memorisation_inception",
    }
    assert set(map_metric_names("fid_antialiased").values()) == {
        *("fid_antialiased", "kid_antialiased", "precision_inception_antialiased", "recall_inception_antialiased"),
        *("inception_score_antialiased", "accuracy_inception_antialiased", "memorisation_inception_antialiased"),
    }
    assert not {"fid", "kid", "inception_score"} & set(map_metric_names("fd_digits").values())


def test_only_the_published_protocol_is_called_fid() -> None:
    called = {
        type(resize).__name__: Inception(resize=resize).metric for resize in (TF1(), Antialiased(), TorchMetrics())
    }
    assert called == {"TF1": "fid", "Antialiased": "fid_antialiased", "TorchMetrics": "fid_torchmetrics"}
    assert Inception().metric == "fid"
    assert len({Inception(resize=resize).protocol for resize in (TF1(), Antialiased(), TorchMetrics())}) == 3


# protocols


def photographs(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (2, channels, size, size), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("size", [32, 299, 500])
def test_tf1_s_resize_is_torch_fidelity_s(size: int) -> None:
    x = photographs(size=size)
    assert torch.equal(TF1()(x, 299), interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False))


@pytest.mark.parametrize("size", [32, 299, 500])
@pytest.mark.parametrize(
    ("resize", "kernel"), [(Antialiased(), Image.Resampling.BICUBIC), (TorchMetrics(), Image.Resampling.BILINEAR)]
)
def test_the_antialiased_resizes_are_pillow_s_on_floats(resize: Resize, kernel: Image.Resampling, size: int) -> None:
    """clean-fid: Image.fromarray(channel, "F").resize(..., BICUBIC).clip(0, 255)."""
    x = photographs(size=size)
    channels = [Image.fromarray(each.numpy()).resize((299, 299), resample=kernel) for each in x.flatten(0, 1)]
    expected = torch.from_numpy(np.stack([np.asarray(each) for each in channels])).clip(0, 255)
    assert resize(x, 299).flatten(0, 1).sub(expected).abs().max() < 0.01  # of 255


# networks


def test_logits_come_with_the_same_features() -> None:
    extractor = loaded(DigitsFeatures())
    pixels = digits(0, 20)
    found, logits = extractor.features_and_logits(pixels)
    assert torch.equal(found, extractor(pixels))
    assert logits is not None
    assert torch.equal(logits, extractor.network(pixels / 127.5 - 1))  # type: ignore[operator]
    assert logits.shape == (20, extractor.classes)


def test_a_network_of_one_s_own_judges() -> None:
    found = measure(digits(300, 600), digits(0, 300), {"fid"}, ModuleFeatures(nn.Flatten(), 64, "pixels"))
    assert list(found) == ["fd_pixels"]


def test_a_network_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"gives \(64, 64\) for 64 images and num_features is 32"):
        measure(digits(0, 100), digits(0, 100), {"fid"}, ModuleFeatures(nn.Flatten(), 32, "pixels"))


def test_a_network_without_verdicts_has_no_score() -> None:
    with pytest.raises(UserError, match="no verdicts to score"):
        measure(digits(0, 100), digits(0, 100), {"is"}, ModuleFeatures(nn.Flatten(), 64, "pixels"))


def test_the_checkpoint_of_a_trained_classifier_judges(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"last\.ckpt judges images of 1x8x8, got 3x32x32"):
        extractor.check_images(3, 32)


def test_a_classifier_s_checkpoint_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint lost\.ckpt"):
        ClassifierFeatures("lost.ckpt").load()


def test_only_inception_has_several_protocols() -> None:
    with pytest.raises(UserError, match="DigitsFeatures has no other protocol than its own; leave Antialiased out"):
        DigitsFeatures().with_resize(Antialiased())


@pytest.mark.usefixtures("offline")
def test_dinov2_without_a_network_is_said(tmp_path: Path) -> None:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"dinov2-vit-s-14 is fetched by torch\.hub and could not be"):
            DINOv2("dinov2-vit-s-14").load()
    finally:
        torch.hub.set_dir(before)
    with pytest.raises(UserError, match="there is no DINOv2 model 'dinov3'"):
        DINOv2("dinov3")


# sets that are too small


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_distance(features(1), features(9)), "needs 2 images on each side, got 1 and 9"),
        (lambda: precision_recall(features(9), features(3)), "need more images than that on each side, got 9 and 3"),
        (lambda: inception_score(features(9)), "a mean over 10 parts of the set; it has 9 images"),
    ],
)
def test_sets_that_are_too_small_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


# statistics in files


def some_statistics(d: int = 5) -> Statistics:
    values = features(50, d).double().numpy()
    return Statistics(values.mean(0), np.cov(values.T), 50)


def test_statistics_are_read_as_written_and_by_pytorch_fid_s_keys(tmp_path: Path) -> None:
    mu, sigma, n = some_statistics()
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
        ({"mu": np.zeros(3), "sigma": np.zeros((4, 4))}, r"mu of shape \(3,\) and sigma of shape \(4, 4\) do not fit"),
        ({"mu": np.full(3, np.nan), "sigma": np.zeros((3, 3))}, "holds NaN or infinity"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.zeros((1, 1))}, "no npz file of statistics, or damaged"),
    ],
)
def test_what_is_no_statistics_is_refused(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "stats.npz", **content)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "stats.npz")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_damaged_file_of_statistics_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stats.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"stats\.npz is no npz file of statistics, or damaged"):
        read_statistics(tmp_path / "stats.npz")
    with pytest.raises(UserError, match=r"there is no file .*lost\.npz"):
        read_statistics(tmp_path / "lost.npz")


def test_given_statistics_give_the_distance_of_the_images_they_are_of() -> None:
    real, made = digits(0, 700), digits(700, 1200)
    source = MetricSuite(loaded(DigitsFeatures()), CPU, set(), len(real))
    source.update(0, real)
    statistics = source.statistics(Ranks())
    assert statistics.n == 700
    figures = MetricSuite(loaded(DigitsFeatures()), CPU, {"fid"}, len(made))
    figures.set_reference(None, statistics._replace(n=0), Ranks(), silent)
    figures.update(0, made)
    found = figures.compute(Ranks())["fd_digits"].value
    assert found == pytest.approx(measure(made, real, {"fid"})["fd_digits"].value, rel=1e-6)


def test_a_shift_of_features_is_its_length_squared_and_a_stretch_the_difference_of_deviations() -> None:
    x = features(500, 64)
    known = Statistics(x.double().mean(0).numpy(), np.cov(x.double().numpy().T), 500)
    figures = MetricSuite(ModuleFeatures(nn.Flatten(), 64, "pixels"), CPU, {"fid"}, 500)
    figures.distance.set_reference_statistics(known, Ranks())
    figures.distance.update_features(x + 0.5)
    assert figures.compute(Ranks())["fd_pixels"].value == pytest.approx(64 * 0.5**2, rel=1e-5)
    figures.distance.update_features(2 * (x - x.mean(0)) + x.mean(0))
    assert figures.compute(Ranks())["fd_pixels"].value == pytest.approx(float(np.trace(known.sigma)), rel=1e-5)


def test_statistics_of_other_features_are_refused() -> None:
    figures = MetricSuite(loaded(DigitsFeatures()), CPU, {"fid"}, 10)
    with pytest.raises(UserError, match=r"statistics of 5 features and digits classifier .* gives 64"):
        figures.set_reference(None, some_statistics(5), Ranks(), silent)


@pytest.mark.parametrize("metric", ["kid", "pr"])
def test_statistics_alone_have_no_kernel_distance_or_neighbours(metric: str) -> None:
    figures = MetricSuite(loaded(DigitsFeatures()), CPU, {metric}, 10)
    with pytest.raises(UserError, match="the reference has statistics alone"):
        figures.set_reference(None, some_statistics(64), Ranks(), silent)


# the real Inception


@pytest.fixture(scope="module")
def weights_path() -> str:
    return str(real_data("fid-inception-2015-12-05.pth"))


@pytest.mark.slow
def test_under_each_protocol_inception_is_the_one_it_is_named_after(weights_path: str) -> None:
    pixels = photographs().to(torch.uint8)
    published = Inception(weights_path)
    published.load()
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=weights_path)
    theirs = NoTrainInceptionV3("theirs", ["2048"], feature_extractor_weights_path=weights_path)
    found = {name: published.with_resize(resize)(pixels) for name, resize in (("tf1", TF1()), ("tm", TorchMetrics()))}
    assert torch.equal(found["tf1"], own(pixels)[0])
    assert torch.equal(found["tm"], theirs(pixels))
    antialiased = published.with_resize(Antialiased())
    assert antialiased.network is published.network
    assert (antialiased(pixels) - found["tf1"]).abs().max() > 1e-3


@pytest.mark.slow
def test_kernel_distance_and_neighbours_in_inception_s_features_are_torch_fidelity_s(weights_path: str) -> None:
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=weights_path)
    colours = [
        images.repeat_interleave(4, 2).repeat_interleave(4, 3) for images in (digits(0, 24), 255 - digits(24, 48))
    ]
    real, made = (own(each.repeat(1, 3, 1, 1))[0] for each in colours)
    found = measure(colours[1], colours[0], {"kid", "pr"}, Inception(weights_path), batch=24)
    kid = kid_features_to_metric(made, real, kid_subset_size=24, verbose=False)
    pr = prc_features_to_metric(made, real, verbose=False)
    assert found["kid"].value == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    assert found["precision_inception"].value == pr["precision"]
    assert found["recall_inception"].value == pr["recall"]


@pytest.mark.slow
def test_weights_without_the_published_class_layer_have_no_inception_score(weights_path: str) -> None:
    extractor = Inception(weights_path)
    extractor.load()
    if extractor.classes is None:  # the features' hash says nothing of the class layer
        with pytest.raises(UserError, match="no verdicts to score"):
            MetricSuite(extractor, CPU, {"is"}, 100)
    own = FeatureExtractorInceptionV3("own", ["logits_unbiased"], feature_extractor_weights_path=weights_path)
    layer = torch.randn(own.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    for network in own, extractor.network:
        network.fc.weight.copy_(layer)
    extractor.classes = len(layer)
    pixels = photographs().to(torch.uint8)
    assert torch.equal(extractor.features_and_logits(pixels)[1], own(pixels)[0])  # type: ignore[arg-type]
