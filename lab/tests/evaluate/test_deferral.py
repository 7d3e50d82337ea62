"""The deferral curve and what is read off it, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semroute_lab.evaluate import deferral
from semroute_lab.evaluate.deferral import DeferralCurve, fixed_curve

CURVE = DeferralCurve(np.asarray([0.2, 0.6, 1.0]), np.asarray([0.5, 0.7, 0.8]))


def test_area_is_flat_before_the_cheapest_point_and_trapezoidal_after() -> None:
    # .2 x .5 + .4 x .6 + .4 x .75
    assert deferral.area(CURVE) == pytest.approx(0.64)


def test_area_to_half_of_the_cost_stops_between_points() -> None:
    # .2 x .5 + .3 x (.5 + .65) / 2
    assert deferral.area(CURVE, 0.5) == pytest.approx(0.2725)


def test_area_stays_at_the_last_quality_where_the_router_spends_less_than_it_may() -> None:
    assert deferral.area(DeferralCurve(np.asarray([0.5]), np.asarray([0.6]))) == pytest.approx(0.6)


def test_quality_neutral_cost_interpolates_and_is_relative_to_the_best_models_cost() -> None:
    # Quality .75 is reached halfway between costs .6 and 1.0; the best model costs .9.
    assert deferral.qnc(CURVE, target=0.75, cost=0.9) == pytest.approx(100 * 0.8 / 0.9)
    assert deferral.qnc(CURVE, target=0.5, cost=1.0) == pytest.approx(20.0)


def test_quality_neutral_cost_is_infinite_where_the_quality_is_never_reached() -> None:
    assert deferral.qnc(CURVE, target=0.81, cost=1.0) == float("inf")


def test_the_hull_skips_dominated_models_and_those_below_the_line_between_neighbors() -> None:
    prices = np.asarray([1.0, 2.0, 3.0, 4.0, 2.5])
    quality = np.asarray([0.4, 0.45, 0.8, 0.9, 0.3])
    # Model 4 is dominated, model 1 lies under the line from 0 to 2.
    assert deferral.hull(prices, quality).tolist() == [0, 2, 3]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_no_model_lies_above_the_hull(models: list[tuple[int, int]]) -> None:
    prices, quality = (np.asarray(column, dtype=float) for column in zip(*models, strict=True))
    on = deferral.hull(prices, quality)
    line = np.interp(prices, prices[on], quality[on])
    assert (quality <= line + 1e-9).all()
    assert (np.diff(quality[on]) > 0).all()


def test_a_router_with_true_errors_sends_each_request_to_the_cheapest_model_that_is_right() -> None:
    outcome = np.asarray([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    cost = np.tile([0.1, 1.0], (4, 1))
    curve = deferral.deferral_curve(1.0 - outcome, np.asarray([0.1, 1.0]), outcome, cost)
    assert curve.quality.max() == 0.75
    # One request of four needs the dear model: 3 x .1 + 1.
    assert curve.cost[-1] == pytest.approx(1.3 / 4)
    assert (curve.cost[0], curve.quality[0]) == pytest.approx((0.1, 0.5))


def test_a_router_that_knows_nothing_of_the_request_only_uses_single_models() -> None:
    rng = np.random.default_rng(3)
    outcome = (rng.random((200, 3)) < [0.3, 0.5, 0.8]).astype(float)
    cost = np.tile([0.2, 0.5, 1.0], (200, 1))
    errors = np.tile(1.0 - outcome.mean(axis=0), (200, 1))
    curve = deferral.deferral_curve(errors, np.asarray([0.2, 0.5, 1.0]), outcome, cost)
    singles = {(0.2, outcome[:, 0].mean()), (0.5, outcome[:, 1].mean()), (1.0, outcome[:, 2].mean())}
    for point in zip(curve.cost, curve.quality, strict=True):
        assert min(abs(point[0] - c) + abs(point[1] - q) for c, q in singles) < 1e-9
    on = deferral.hull(np.asarray([0.2, 0.5, 1.0]), outcome.mean(axis=0))
    assert deferral.area(fixed_curve(on, outcome, cost)) == pytest.approx(deferral.area(curve))


def test_a_pairs_curve_runs_from_the_weak_to_the_strong_model_by_score() -> None:
    outcome = np.asarray([[0.0, 9.0, 1.0], [1.0, 9.0, 1.0]])
    cost = np.asarray([[0.1, 9.0, 1.0], [0.1, 9.0, 1.0]])
    found = deferral.pair_curve(np.asarray([0.9, 0.2]), 0, 2, outcome, cost)
    assert found.cost.tolist() == pytest.approx([0.1, 0.55, 1.0])
    assert found.quality.tolist() == pytest.approx([0.5, 1.0, 1.0])
    tied = deferral.pair_curve(np.asarray([0.5, 0.5]), 0, 2, outcome, cost)
    assert tied.quality.tolist() == pytest.approx([0.5, 0.75, 1.0])
