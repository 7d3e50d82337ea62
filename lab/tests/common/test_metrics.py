"""Classification metrics against hand-computed cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semroute_lab.common import metrics
from semroute_lab.common.metrics import weighted_auroc
from sklearn import metrics as reference


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_macro_f1_equals_scikit_learns_also_for_repeated_rows(
    pairs: list[tuple[int, int]],
) -> None:
    truth, predicted = (np.asarray(column) for column in zip(*pairs, strict=True))
    expected = reference.f1_score(truth, predicted, average="macro", zero_division=0.0)
    assert metrics.macro_f1(truth, predicted) == [pytest.approx(expected)]
    counts = np.random.default_rng(len(pairs)).integers(1, 3, (2, truth.size))
    for value, row in zip(metrics.macro_f1(truth, predicted, counts.astype(float)), counts, strict=True):
        repeated = (np.repeat(each, row) for each in (truth, predicted))
        assert value == pytest.approx(reference.f1_score(*repeated, average="macro", zero_division=0.0))


def test_ratios_are_those_of_the_sums_with_intervals_and_none_without_a_whole() -> None:
    parts, wholes = np.asarray([[1.0, 0.0], [0.0, 0.0]] * 50), np.asarray([[1.0, 0.0], [1.0, 0.0]] * 50)
    first, second = metrics.ratios(parts, wholes, replicates=400, seed=0)
    assert second is None
    assert first is not None
    assert first.value == 0.5
    assert (first.low, first.high) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.6, abs=0.03))
    bare = metrics.ratios(parts, wholes, replicates=0, seed=0)[0]
    assert bare == metrics.Estimate(0.5)


def test_calibration_error_of_two_bins_is_the_one_worked_out_by_hand() -> None:
    """Three rows at .9 of which two are right, one at .5 that is right: (3/4)|2/3 - .9| + (1/4)|1 - .5|."""
    confidence = np.asarray([0.9, 0.9, 0.9, 0.5])
    correct = np.asarray([True, True, False, True])
    assert metrics.binary_ece(confidence, correct.astype(float)) == pytest.approx(
        0.75 * (0.9 - 2 / 3) + 0.25 * 0.5
    )


def test_a_confidence_on_a_bin_edge_belongs_to_the_bin_below() -> None:
    table = metrics.reliability(np.asarray([0.2, 0.4]), np.asarray([1.0, 0.0]), bins=5)
    assert table.share.tolist() == [0.5, 0.5]
    assert table.observed.tolist() == [1.0, 0.0]


def test_perfectly_calibrated_probabilities_have_a_small_error_and_shifted_ones_the_shift() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(40_000) * 0.6
    event = (rng.random(p.size) < p).astype(float)
    assert metrics.binary_ece(p, event) < 0.015
    assert metrics.binary_ece(p + 0.2, event) == pytest.approx(0.2, abs=0.01)


def test_abstention_curve_starts_with_the_most_confident_and_ends_at_the_accuracy() -> None:
    confidence = np.asarray([0.2, 0.9, 0.5, 0.7])
    correct = np.asarray([False, True, False, True])
    coverage, accuracy = metrics.abstention_curve(confidence, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert accuracy.tolist() == pytest.approx([1.0, 1.0, 2 / 3, 0.5])


def test_abstention_with_one_confidence_for_all_is_flat() -> None:
    _, accuracy = metrics.abstention_curve(np.full(10, 0.5), np.arange(10) < 3)
    assert accuracy.tolist() == pytest.approx([0.3] * 10)


scored = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: 0 < sum(label for _, label in rows) < len(rows)
)


@given(scored)
def test_weighted_auroc_equals_the_auroc_of_repeated_rows(rows: list[tuple[int, bool]]) -> None:
    scores, positive = np.asarray([float(s) for s, _ in rows]), np.asarray([label for _, label in rows])
    counts = np.random.default_rng(len(rows)).integers(1, 4, (3, scores.size))
    found = weighted_auroc(scores, positive, counts.astype(float))
    for value, row in zip(found, counts, strict=True):
        repeated = np.repeat(np.arange(scores.size), row)
        assert value == pytest.approx(metrics.auroc(scores[repeated], positive[repeated]))


def test_auroc_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="both"):
        metrics.auroc(np.asarray([0.1, 0.2]), np.asarray([True, True]))


def test_false_positives_are_counted_where_95_percent_of_the_positives_pass() -> None:
    """Of 20 positives 19 must pass, so the threshold is 2; of the negatives 2 and 5 pass."""
    scores = np.asarray([*range(1, 21), 0.0, 1.0, 2.0, 5.0], dtype=float)
    positive = np.arange(24) < 20
    assert metrics.fpr_at_tpr(scores, positive) == 0.5


def test_perfect_and_useless_detectors_have_the_expected_false_positive_rates() -> None:
    positive = np.arange(200) < 100
    assert metrics.fpr_at_tpr(positive.astype(float), positive) == 0.0
    assert metrics.fpr_at_tpr(np.zeros(200), positive) == 1.0


def test_spearman_is_one_for_any_monotone_relation_and_zero_without_variation() -> None:
    x = np.asarray([1.0, 5.0, 2.0, 9.0])
    assert metrics.spearman(x, x**3) == pytest.approx(1.0)
    assert metrics.spearman(x, -np.exp(x)) == pytest.approx(-1.0)
    assert metrics.spearman(x, np.ones(4)) == 0.0
