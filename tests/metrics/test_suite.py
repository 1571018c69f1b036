"""All metrics in one pass, on any number of ranks, against torch-fidelity and scikit-learn; their names."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.metrics import CPU, digits, in_memory, load, make_features, make_statistics, show_nothing
from helpers.tiny import real_data
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from lightning_ddpm.data import Digits
from lightning_ddpm.metrics import (
    DigitsFeatures,
    FeatureExtractor,
    Inception,
    MetricSuite,
    MetricValue,
    ModuleFeatures,
    RequestedClasses,
    Statistics,
)
from lightning_ddpm.metrics.suite import check_reference, is_higher_better, map_metric_names
from lightning_ddpm.utils.distributed import Ranks
from lightning_ddpm.utils.errors import UserError


@pytest.fixture(autouse=True)
def reference_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test."""
    monkeypatch.setenv("LIGHTNING_DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def measure(
    generated: Tensor,
    real: Tensor,
    metrics: Iterable[str] = ("fid", "kid", "pr", "is"),
    extractor: FeatureExtractor | None = None,
    batch: int = 64,
    classes: RequestedClasses | None = None,
) -> dict[str, MetricValue]:
    """Compute metrics on one rank, with updates of this many images."""
    suite = MetricSuite(load(extractor or DigitsFeatures()), CPU, set(metrics), len(generated), classes)
    suite.set_reference(in_memory(real), None, Ranks(), show_nothing)
    for start in range(0, len(generated), batch):
        suite.update(start, generated[start : start + batch])
    return suite.compute(Ranks())


def test_all_metrics_match_torch_fidelity() -> None:
    extractor = load(DigitsFeatures())
    real, generated = digits(0, 1010), 255 - digits(400, 1600)
    with torch.no_grad():
        (x, logits), y = extractor.features_and_logits(generated), extractor(real)
    assert logits is not None
    found = measure(generated, real)
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


class Counting(ModuleFeatures):
    """Pixels as features; counts the images that pass through."""

    passed = 0

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), 64, "pixels")

    def forward(self, pixels: Tensor) -> Tensor:
        self.passed += len(pixels)
        return super().forward(pixels)


def test_every_image_passes_the_network_once() -> None:
    extractor = Counting()
    measure(digits(300, 700), digits(0, 300), {"fid", "kid", "pr"}, extractor)
    assert extractor.passed == 400 + 300


def test_metrics_do_not_depend_on_the_size_of_updates() -> None:
    whole, parts = (measure(digits(500, 900), digits(0, 500), batch=batch) for batch in (400, 64))
    assert whole == parts


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_compute_the_same_metrics_as_one(world_size: int) -> None:
    generated, real, metrics = digits(500, 1001), digits(0, 500), {"kid", "pr", "is"}
    alone = measure(generated, real, metrics)
    ranks = [MetricSuite(load(DigitsFeatures()), CPU, metrics, len(generated)) for _ in range(world_size)]
    for index, start in enumerate(range(0, len(generated), 64)):
        ranks[index % world_size].update(start, generated[start : start + 64])
    gathered = [sum(parts) for parts in zip(*((r.features.rows, r.logits.rows) for r in ranks), strict=True)]
    ranks[0].features.rows, ranks[0].logits.rows = gathered
    ranks[0].set_reference(in_memory(real), None, Ranks(), show_nothing)
    assert ranks[0].compute(Ranks()) == alone
    assert ranks[1].compute(Ranks(1, 2)) == {}


TEN = [f"digit {label}" for label in range(10)]


def test_accuracy_matches_scikit_learn_over_all_images_and_in_each_class() -> None:
    pixels, labels = Digits().open(Path("unused"), "train").__getitems__(range(300))
    labels = torch.where(torch.arange(300) % 7 == 0, 3, labels)  # a 3 is requested, whatever the image shows
    labels[labels == 9] = 8  # no 9 is requested
    found = measure(pixels, digits(0, 50), {"accuracy"}, classes=RequestedClasses(labels, TEN))
    predictions = load(DigitsFeatures()).features_and_logits(pixels)[1].argmax(1)
    by_class = recall_score(labels, predictions, average=None, labels=range(9), zero_division=0)
    expected = {"accuracy_digits": accuracy_score(labels, predictions)}
    expected |= {f"accuracy_digits/digit {label}": share for label, share in enumerate(by_class)}
    assert {name: each.value for name, each in found.items()} == pytest.approx(expected)
    assert 0.1 < found["accuracy_digits/digit 3"].value < found["accuracy_digits/digit 1"].value == 1
    assert is_higher_better("accuracy_digits/digit 3")


def test_accuracy_without_requested_classes_or_with_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match="generated for requested classes, and these were not; leave it out, or sample"):
        measure(digits(0, 20), digits(0, 20), {"accuracy"})
    three = RequestedClasses(torch.zeros(20, dtype=torch.long), ["cat", "dog", "bird"])
    with pytest.raises(UserError, match=r"has 10 classes and the model has 3 \(cat, dog, bird\); use a class"):
        measure(digits(0, 20), digits(0, 20), {"accuracy"}, classes=three)


@pytest.mark.parametrize("metric", ["fid", "spectrum", "marginals"])
def test_a_reference_without_images_is_refused(metric: str) -> None:
    with pytest.raises(UserError, match=r"takes a reference of at least .* images?, and the held-out set has 0; give"):
        check_reference([metric], 0, "the held-out set")
    check_reference(["is", "accuracy"], 0, "the held-out set")
    check_reference(["spectrum", "marginals"], 1, "the held-out set")


@pytest.mark.parametrize("metric", ["is", "accuracy"])
def test_metrics_of_logits_need_a_network_with_logits(metric: str) -> None:
    with pytest.raises(UserError, match=f"has no logits: .* leave `{metric}` out"):
        measure(digits(0, 20), digits(0, 20), {metric}, ModuleFeatures(nn.Flatten(), 64, "pixels"))


def test_metric_names_contain_network_and_protocol() -> None:
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


def test_any_module_can_be_the_feature_network() -> None:
    found = measure(digits(300, 600), digits(0, 300), {"fid"}, ModuleFeatures(nn.Flatten(), 64, "pixels"))
    assert list(found) == ["fd_pixels"]


def test_module_with_another_number_of_features_is_refused() -> None:
    with pytest.raises(UserError, match=r"returns \(64, 64\) for 64 images and num_features is 32"):
        measure(digits(0, 100), digits(0, 100), {"fid"}, ModuleFeatures(nn.Flatten(), 32, "pixels"))


def test_given_statistics_give_the_same_distance_as_their_images() -> None:
    real, generated = digits(0, 700), digits(700, 1200)
    source = MetricSuite(load(DigitsFeatures()), CPU, set(), len(real))
    source.update(0, real)
    statistics = source.frechet.compute_statistics(Ranks())
    assert statistics.n == 700
    suite = MetricSuite(load(DigitsFeatures()), CPU, {"fid"}, len(generated))
    suite.set_reference(None, statistics._replace(n=0), Ranks(), show_nothing)
    suite.update(0, generated)
    found = suite.compute(Ranks())["fd_digits"].value
    assert found == pytest.approx(measure(generated, real, {"fid"})["fd_digits"].value, rel=1e-6)


def test_distance_of_shifted_and_scaled_features_matches_closed_forms() -> None:
    x = make_features(500, 64)
    known = Statistics(x.double().mean(0).numpy(), np.cov(x.double().numpy().T), 500)
    suite = MetricSuite(ModuleFeatures(nn.Flatten(), 64, "pixels"), CPU, {"fid"}, 500)
    suite.frechet.set_reference_statistics(known, Ranks())
    suite.frechet.update_features(x + 0.5)
    assert suite.compute(Ranks())["fd_pixels"].value == pytest.approx(64 * 0.5**2, rel=1e-5)
    suite.frechet.update_features(2 * (x - x.mean(0)) + x.mean(0))
    assert suite.compute(Ranks())["fd_pixels"].value == pytest.approx(float(np.trace(known.sigma)), rel=1e-5)


def test_statistics_of_other_features_are_refused() -> None:
    suite = MetricSuite(load(DigitsFeatures()), CPU, {"fid"}, 10)
    with pytest.raises(UserError, match=r"statistics of 5 features and digits classifier .* has 64"):
        suite.set_reference(None, make_statistics(5), Ranks(), show_nothing)


@pytest.mark.parametrize("metric", ["kid", "pr"])
def test_kernel_distance_and_neighbours_need_the_reference_images(metric: str) -> None:
    suite = MetricSuite(load(DigitsFeatures()), CPU, {metric}, 10)
    with pytest.raises(UserError, match="the reference has statistics only"):
        suite.set_reference(None, make_statistics(64), Ranks(), show_nothing)


@pytest.fixture(scope="module")
def weights_path() -> str:
    return str(real_data("fid-inception-2015-12-05.pth"))


@pytest.mark.slow
def test_kernel_distance_and_neighbours_in_inceptions_features_match_torch_fidelity(weights_path: str) -> None:
    own = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=weights_path)
    sets = [each.repeat_interleave(4, 2).repeat_interleave(4, 3) for each in (digits(0, 24), 255 - digits(24, 48))]
    real, generated = (own(each.repeat(1, 3, 1, 1))[0] for each in sets)
    found = measure(sets[1], sets[0], {"kid", "pr"}, Inception(weights_path), batch=24)
    kid = kid_features_to_metric(generated, real, kid_subset_size=24, verbose=False)
    pr = prc_features_to_metric(generated, real, verbose=False)
    assert found["kid"].value == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    assert found["precision_inception"].value == pr["precision"]
    assert found["recall_inception"].value == pr["recall"]
