"""Pair metrics against hand-computed cases, published reference points and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semroute_lab.common import routing


def outcomes(strong_only: int, weak_only: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcome vectors with the given cell counts; the order of the cells does not matter to an oracle."""
    strong = [1.0] * strong_only + [0.0] * weak_only + [1.0] * both + [0.0] * neither
    weak = [0.0] * strong_only + [1.0] * weak_only + [1.0] * both + [0.0] * neither
    return np.asarray(strong), np.asarray(weak)


MMLU = outcomes(2496, 742, 8816, 1983)
GSM8K = outcomes(382, 94, 739, 92)

HAND_STRONG = np.asarray([1.0, 1.0, 0.0, 1.0])
HAND_WEAK = np.asarray([0.0, 1.0, 0.0, 0.0])
HAND_SCORES = np.asarray([0.9, 0.8, 0.3, 0.1])


def oracle_curve(strong: np.ndarray, weak: np.ndarray) -> routing.Curve:
    """RouteLLM's `get_optimal_accuracy`: the best quality at *up to* a strong share."""
    curve = routing.exact_curve(strong - weak, strong, weak)
    return routing.Curve(curve.share, np.maximum.accumulate(curve.quality))


def test_pgr_is_zero_for_the_weak_model_one_for_the_strong_and_linear_between() -> None:
    assert routing.pgr(0.6, strong=0.8, weak=0.6) == 0.0
    assert routing.pgr(0.8, strong=0.8, weak=0.6) == 1.0
    assert routing.pgr(0.7, strong=0.8, weak=0.6) == pytest.approx(0.5)


def test_pgr_refuses_models_of_equal_quality() -> None:
    with pytest.raises(ValueError, match="gap"):
        routing.pgr(0.5, strong=0.5, weak=0.5)


def test_exact_curve_of_four_requests_is_the_one_worked_out_by_hand() -> None:
    """Gains in score order are 1, 0, 0, 1; the weak model alone is right once in four."""
    curve = routing.exact_curve(HAND_SCORES, HAND_STRONG, HAND_WEAK)
    assert curve.share.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve.quality.tolist() == [0.25, 0.5, 0.5, 0.5, 0.75]
    # Trapezoid: (.375 + .5 + .5 + .625) / 4 = .5, which is half of the gap from .25 to .75.
    assert routing.apgr(curve, 0.75, 0.25) == pytest.approx(0.5)
    found = routing.point_metrics(HAND_SCORES, HAND_STRONG, HAND_WEAK, seed=0)
    assert found["apgr_exact"] == pytest.approx(0.5)
    assert found["cpt50_exact"] == 25.0
    # .65 lies three fifths of the way from the fourth point (.5) to the last (.75).
    assert found["cpt80_exact"] == pytest.approx(90.0)


def test_tied_scores_give_the_mean_curve_over_all_their_orders() -> None:
    curve = routing.exact_curve(np.asarray([1.0, 1.0, 0.0, 0.0]), HAND_STRONG, HAND_WEAK)
    assert curve.quality.tolist() == [0.25, 0.375, 0.5, 0.625, 0.75]


def test_a_constant_score_is_the_random_router() -> None:
    curve = routing.exact_curve(np.zeros(MMLU[0].size), *MMLU)
    assert routing.apgr(curve, MMLU[0].mean(), MMLU[1].mean()) == pytest.approx(0.5, abs=1e-9)


def test_decile_edges_of_eleven_even_scores_are_the_scores() -> None:
    assert routing.decile_edges(np.arange(11.0)).tolist() == pytest.approx(list(range(11)))


def test_decile_curve_of_ten_requests_steps_by_one_request() -> None:
    """Nine of qcut's edges lie between neighbors; the first keeps all, the last (>) keeps none."""
    gains = np.asarray([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    curve = routing.decile_curve(np.arange(10.0)[::-1], gains, np.zeros(10))
    assert curve.share.tolist() == pytest.approx([k / 10 for k in range(11)])
    assert curve.quality.tolist() == pytest.approx([0.0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4, 0.5])
    # numpy.interp at half of the gap (.25) falls between shares .3 (.2) and .4 (.3).
    assert routing.cpt(curve, 0.5, 0.5, 0.0) == pytest.approx(35.0)
    # Sum of the eleven points less half of both ends: (3.0 - .25) / 10 = .275, over the gap of .5.
    assert routing.apgr(curve, 0.5, 0.0) == pytest.approx(0.55)


def test_decile_curve_breaks_ties_that_qcut_would_refuse_by_the_seed() -> None:
    rng = np.random.default_rng(1)
    strong, weak = rng.integers(0, 2, (2, 500)).astype(float)
    tied = np.repeat([0.0, 1.0], 250)
    first = routing.decile_curve(tied, strong, weak, seed=3)
    again = routing.decile_curve(tied, strong, weak, seed=3)
    assert first.share.tolist() == pytest.approx([k / 10 for k in range(11)])
    assert first.quality.tolist() == again.quality.tolist()


@pytest.mark.parametrize(
    ("data", "coarse", "exact", "optimal", "cpt50", "cpt80", "best_pgr", "best_share"),
    [
        pytest.param(MMLU, 1.268, 1.285, 1.290, 6.25, 10.00, 1.423, 0.18, id="MMLU"),
        pytest.param(GSM8K, 1.115, 1.121, 1.131, 11.02, 17.63, 1.326, 0.29, id="GSM8K"),
    ],
)
def test_oracle_figures_follow_from_the_published_cell_counts(
    data: tuple[np.ndarray, np.ndarray],
    coarse: float,
    exact: float,
    optimal: float,
    cpt50: float,
    cpt80: float,
    best_pgr: float,
    best_share: float,
) -> None:
    """RouteLLM's pair on the whole test sets: ten-step, exact and optimal-curve APGR, and CPT."""
    s, w = data[0].mean(), data[1].mean()
    score = data[0] - data[1]
    steps = routing.decile_curve(score, *data)
    every = routing.exact_curve(score, *data)
    ceiling = oracle_curve(*data)
    tenths = np.linspace(0.0, 1.0, 11)
    coarse_ceiling = routing.Curve(tenths, np.interp(tenths, ceiling.share, ceiling.quality))
    assert routing.apgr(steps, s, w) == pytest.approx(coarse, abs=6e-4)
    assert routing.apgr(every, s, w) == pytest.approx(exact, abs=6e-4)
    assert routing.apgr(coarse_ceiling, s, w) == pytest.approx(optimal, abs=6e-4)
    found = routing.point_metrics(score, *data, seed=0)
    assert found["cpt50_exact"] == pytest.approx(cpt50, abs=0.01)
    assert found["cpt80_exact"] == pytest.approx(cpt80, abs=0.01)
    top = int(np.argmax(every.quality))
    assert routing.pgr(every.quality[top], s, w) == pytest.approx(best_pgr, abs=6e-4)
    assert every.share[top] == pytest.approx(best_share, abs=0.005)


@pytest.mark.parametrize(("data", "noise"), [(MMLU, 0.019), (GSM8K, 0.038)], ids=["MMLU", "GSM8K"])
def test_random_routers_score_half_on_average_with_the_published_spread(
    data: tuple[np.ndarray, np.ndarray], noise: float
) -> None:
    """`noise` is the published half-width of single runs."""
    s, w = data[0].mean(), data[1].mean()
    rng = np.random.default_rng(0)
    curves = [routing.decile_curve(rng.random(data[0].size), *data) for _ in range(200)]
    apgr = np.asarray([routing.apgr(curve, s, w) for curve in curves])
    assert apgr.mean() == pytest.approx(0.5, abs=4 * noise / np.sqrt(200))
    assert 1.96 * apgr.std() == pytest.approx(noise, rel=0.25)
    assert np.mean([routing.cpt(curve, 0.5, s, w) for curve in curves]) == pytest.approx(50.0, abs=1.0)
    assert np.mean([routing.cpt(curve, 0.8, s, w) for curve in curves]) == pytest.approx(80.0, abs=1.0)


def test_published_accuracies_follow_from_the_cell_counts() -> None:
    assert 100 * MMLU[0].mean() == pytest.approx(80.587, abs=5e-4)
    assert 100 * MMLU[1].mean() == pytest.approx(68.091, abs=5e-4)
    assert 100 * GSM8K[0].mean() == pytest.approx(85.769, abs=5e-4)
    assert 100 * GSM8K[1].mean() == pytest.approx(63.734, abs=5e-4)


def test_quality_drop_is_the_percentage_of_the_strong_models_quality() -> None:
    found = routing.point_metrics(HAND_SCORES, HAND_STRONG, HAND_WEAK, seed=0)
    # At a weak share of 20 % the strong share is 80 % and quality .55 of .75.
    assert found["drop20"] == pytest.approx(100 * 0.2 / 0.75)


def test_quality_drop_of_negative_qualities_keeps_its_sign() -> None:
    """BARTScore is a log probability: losing quality is a positive drop there too."""
    found = routing.point_metrics(np.asarray([1.0, 0.0]), np.full(2, -2.0), np.full(2, -3.0), seed=0)
    assert found["drop40"] == pytest.approx(20.0)


def test_a_score_that_only_knows_the_subject_keeps_nothing_within_subjects() -> None:
    subjects = ["law", "law", "physics", "physics"]
    assert routing.within_groups(np.asarray([0.2, 0.2, 0.7, 0.7]), subjects).tolist() == [0.0] * 4


def test_a_score_within_subjects_is_a_z_score_of_each() -> None:
    subjects = ["law", "physics", "law", "physics"]
    found = routing.within_groups(np.asarray([1.0, 10.0, 3.0, 30.0]), subjects)
    assert found.tolist() == pytest.approx([-1.0, -1.0, 1.0, 1.0])


def test_taking_length_out_leaves_nothing_of_a_score_that_is_length() -> None:
    length = np.asarray([3.0, 9.0, 4.0, 7.0, 1.0, 5.0])
    subjects = ["a", "a", "a", "b", "b", "b"]
    ranks = np.asarray([2.0, 6.0, 3.0, 5.0, 1.0, 4.0])
    assert routing.within_groups(ranks, subjects, other=length) == pytest.approx(np.zeros(6), abs=1e-12)


scores_and_outcomes = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(0, 1), st.integers(0, 1)), min_size=20, max_size=60
).map(lambda rows: tuple(np.asarray(column, dtype=float) for column in zip(*rows, strict=True)))


@given(scores_and_outcomes)
def test_monotone_transforms_of_the_score_leave_every_curve_unchanged(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Where an edge of qcut falls on a data point, rounding decides and only the exact curve is bound."""
    scores, strong, weak = data
    between = (scores.size - 1) % 2 != 0 and (scores.size - 1) % 5 != 0
    for curve in (routing.exact_curve, routing.decile_curve) if between else (routing.exact_curve,):
        before = curve(scores, strong, weak)
        after = curve(np.exp(scores / 10.0) * 3.0 - 1.0, strong, weak)
        assert after.quality == pytest.approx(before.quality)
        assert after.share == pytest.approx(before.share)


@given(scores_and_outcomes)
def test_reversing_the_score_mirrors_the_curve_about_the_diagonal(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """A_rev(x) = A_s + A_w - A(1 - x), so the two APGR add up to one."""
    scores, strong, weak = data
    forward = routing.exact_curve(scores, strong, weak)
    backward = routing.exact_curve(-scores, strong, weak)
    mirrored = strong.mean() + weak.mean() - forward.quality[::-1]
    assert backward.quality == pytest.approx(mirrored)
    if strong.mean() != weak.mean():
        both = [routing.apgr(curve, strong.mean(), weak.mean()) for curve in (forward, backward)]
        assert sum(both) == pytest.approx(1.0)


@given(scores_and_outcomes)
def test_no_router_is_above_the_oracle_at_any_budget(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, strong, weak = data
    mine = routing.exact_curve(scores, strong, weak).quality
    assert (mine <= oracle_curve(strong, weak).quality + 1e-12).all()


@given(scores_and_outcomes, st.sampled_from([0.2, 0.5, 0.8]))
def test_the_exact_threshold_reaches_its_target_and_one_request_less_does_not(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], q: float
) -> None:
    scores, strong, weak = data
    s, w = float(strong.mean()), float(weak.mean())
    if s <= w:
        return
    curve = routing.exact_curve(scores, strong, weak)
    share = routing.point_metrics(scores, strong, weak, seed=0)[f"cpt{100 * q:.0f}_exact"]
    at = int(np.ceil(share / 100 * scores.size - 1e-9))
    assert curve.quality[at] >= w + q * (s - w) - 1e-9
    assert (curve.quality[:at] < w + q * (s - w)).all()


@pytest.mark.parametrize("bad", [[], [float("nan"), 1.0], [float("inf"), 0.0]])
def test_scores_that_are_empty_or_not_finite_are_refused(bad: list[float]) -> None:
    ones = np.ones(len(bad))
    with pytest.raises(ValueError, match="expected"):
        routing.exact_curve(np.asarray(bad), ones, ones)
