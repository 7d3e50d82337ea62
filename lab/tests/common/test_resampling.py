"""Bootstrap intervals: seeded, paired, and equal to resampling the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_lab.common import metrics, routing
from semroute_lab.common.metrics import estimate


def pair_data(rows: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    difficulty = rng.random(rows)
    strong = (rng.random(rows) < 0.9 - 0.1 * difficulty).astype(float)
    weak = (rng.random(rows) < 0.8 - 0.7 * difficulty).astype(float)
    return difficulty + 0.3 * rng.standard_normal(rows), strong, weak


def test_every_resample_draws_as_many_rows_as_there_are() -> None:
    counts = np.concatenate(list(metrics.resamples(30, 50, seed=1)))
    assert counts.shape == (50, 30)
    assert (counts.sum(axis=1) == 30).all()


def test_the_same_seed_draws_the_same_rows_and_another_does_not() -> None:
    first, again, other = (next(metrics.resamples(30, 5, seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_pair_samples_equal_the_metrics_of_the_repeated_rows() -> None:
    """The oracle of this test builds every resample row by row and uses the plain metrics."""
    scores, strong, weak = pair_data(60)
    samples = routing.bootstrap_pair({"router": scores}, strong, weak, replicates=25, seed=9)["router"]
    counts = np.concatenate(list(metrics.resamples(60, 25, seed=9))).astype(int)
    for i, row in enumerate(counts):
        drawn = np.repeat(np.arange(60), row)
        s, w = strong[drawn].mean(), weak[drawn].mean()
        curve = routing.exact_curve(scores[drawn], strong[drawn], weak[drawn])
        assert samples["apgr_exact"][i] == pytest.approx(routing.apgr(curve, s, w))
        drop = 100 * (s - np.interp(0.8, curve.share, curve.quality)) / abs(s)
        assert samples["drop20"][i] == pytest.approx(drop)
        first = curve.share[np.argmax(curve.quality >= (s + w) / 2 - 1e-12)]
        assert first - 1 / 60 <= samples["cpt50_exact"][i] / 100 <= first + 1e-12


def test_the_coarse_samples_agree_with_the_decile_metrics_at_the_full_data() -> None:
    scores, strong, weak = pair_data(1000)
    samples = routing.bootstrap_pair({"router": scores}, strong, weak, replicates=300, seed=0)["router"]
    curve = routing.decile_curve(scores, strong, weak)
    value = routing.apgr(curve, strong.mean(), weak.mean())
    assert samples["apgr"].mean() == pytest.approx(value, abs=2 * samples["apgr"].std() / np.sqrt(300) + 0.01)


def test_a_routers_difference_to_itself_is_exactly_zero() -> None:
    scores, strong, weak = pair_data()
    samples = routing.bootstrap_pair({"a": scores, "b": 2 * scores}, strong, weak, replicates=50, seed=3)
    assert (samples["a"]["apgr"] == samples["b"]["apgr"]).all()


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says() -> None:
    """200 data sets of 60 rows: 95 % nominal, percentile bootstraps are a little short of it."""
    rng = np.random.default_rng(11)
    covered = 0
    for seed in range(200):
        values = rng.random(60)
        samples = metrics.bootstrap(lambda counts, v=values: counts @ v / v.size, 60, 300, seed)
        found = estimate(float(values.mean()), samples)
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_without_replicates_there_is_no_interval() -> None:
    scores, strong, weak = pair_data()
    assert routing.bootstrap_pair({"a": scores}, strong, weak, replicates=0, seed=0)["a"] == {}
    assert estimate(0.5, None) == metrics.Estimate(0.5, None, None)


def test_the_lift_over_random_starts_and_ends_at_zero() -> None:
    scores, strong, weak = pair_data()
    grid = np.linspace(0.0, 1.0, 21)
    lift = routing.bootstrap_lift(scores, strong, weak, grid, replicates=20, seed=0)
    assert lift.shape == (20, 21)
    assert lift[:, [0, -1]] == pytest.approx(np.zeros((20, 2)), abs=1e-12)
    assert lift[:, 10].mean() > 0
