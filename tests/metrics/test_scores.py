"""Each metric against torch-fidelity's arithmetic and closed forms."""

from collections.abc import Callable

import pytest
import torch
from helpers.metrics import make_features
from torch_fidelity.metric_prc import prc_features_to_metric

from lightning_ddpm.metrics.scores import compute_inception_score, compute_kernel_distance, compute_precision_recall
from lightning_ddpm.utils.errors import UserError


def test_precision_and_recall_in_parts_equal_those_of_the_whole_matrix() -> None:
    x, y = make_features(777), make_features(1111, shift=0.3, seed=1)
    whole = prc_features_to_metric(x, y, verbose=False)
    precision, recall = compute_precision_recall(x, y)
    assert precision.value == pytest.approx(whole["precision"], abs=2e-3)
    assert recall.value == pytest.approx(whole["recall"], abs=2e-3)


def test_kernel_distance_of_equal_distributions_is_smaller_than_its_deviation() -> None:
    value, std = compute_kernel_distance(make_features(3000), make_features(3000, seed=1))
    assert std is not None
    assert abs(value) < std


def test_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    x, y = make_features(40, 4), make_features(40, 4, shift=0.5, seed=1)
    k = [((a @ b.T / 4 + 1) ** 3).double() for a, b in ((x, x), (y, y), (x, y))]
    within = sum(float(each.sum() - each.trace()) / (40 * 39) for each in k[:2])
    value, std = compute_kernel_distance(x, y)  # the one subset is the whole set
    assert value == pytest.approx(within - 2 * float(k[2].mean()), rel=1e-4)
    assert std == pytest.approx(0, abs=1e-5)


def test_precision_and_recall_are_zero_for_distant_sets_and_one_for_equal_sets() -> None:
    x = make_features(300)
    assert compute_precision_recall(x, x + 1000) == ((0.0, None), (0.0, None))
    assert compute_precision_recall(x, x) == ((1.0, None), (1.0, None))


def test_a_part_of_the_set_has_precision_but_not_recall() -> None:
    real = torch.cat([make_features(200, 3), make_features(200, 3, shift=100.0)])
    precision, recall = compute_precision_recall(make_features(200, 3, seed=1), real)
    assert precision.value > 0.8
    assert recall.value < 0.55


def test_inception_score_is_the_number_of_classes_for_certain_predictions_and_one_for_uniform_ones() -> None:
    sure = 50 * torch.eye(5).repeat(2000, 1)
    assert compute_inception_score(sure).value == pytest.approx(5, rel=0.01)
    assert compute_inception_score(torch.zeros(100, 5)) == (pytest.approx(1), pytest.approx(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compute_kernel_distance(make_features(1), make_features(9)),
            "needs 2 images on each side, got 1 and 9",
        ),
        (
            lambda: compute_precision_recall(make_features(9), make_features(3)),
            "need more images than that on each side, got 9 and 3",
        ),
        (lambda: compute_inception_score(make_features(9)), "a mean over 10 parts of the set; it has 9 images"),
    ],
)
def test_too_small_sets_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
