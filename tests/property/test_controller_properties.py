"""What holds of the controllers whatever comes: bounds, monotony, no request moved the wrong way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from semroute_extproc.policy.context import Choice, Conditions, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.settings.controllers import Budget, LoadController
from semroute_extproc.state.budget import BudgetController
from semroute_extproc.state.live import BIAS_MAX, GAIN, WINDOW, LiveScores, biased, threshold_for_share
from semroute_extproc.state.pressure import PoolPressure, raw_pressure
from semroute_extproc.state.sessions import Sessions
from semroute_extproc.strategies.cutoff import Cutoff, pressed

shares = st.floats(0.0, 1.0)
leanings = st.floats(-8.0, 8.0)
ceilings = st.none() | shares
quantiles = st.lists(shares, min_size=101, max_size=101).map(sorted)
gauges = st.dictionaries(
    st.sampled_from(["running", "waiting", "kv_cache_usage"]), st.floats(0.0, 1e6, allow_nan=False)
)


def choose(
    cutoff: Cutoff, score: float, pressure: dict[str, float], leaning: float, **conditions: Any
) -> Choice:
    facts = RoutingContext(
        RequestHead("POST", "/"),
        RequestView(Api.CHAT_COMPLETIONS, "auto"),
        "en",
        10,
        bias=leaning,
        conditions=Conditions(pressure, **conditions),
    )
    return cutoff.choose(score, facts)


@given(shares, shares, shares, shares, shares, ceilings)
def test_more_pressure_on_the_strong_pool_never_raises_its_share(
    share: float, weak: float, one: float, other: float, floor: float, ceiling: float | None
) -> None:
    low, high = sorted((one, other))
    assert pressed(share, weak, high, floor, ceiling) <= pressed(share, weak, low, floor, ceiling) + 1e-12


@given(shares, shares, shares, shares, shares, ceilings)
def test_more_pressure_on_the_weak_pool_never_lowers_the_strong_share(
    share: float, strong: float, one: float, other: float, floor: float, ceiling: float | None
) -> None:
    low, high = sorted((one, other))
    assert pressed(share, high, strong, floor, ceiling) >= pressed(share, low, strong, floor, ceiling) - 1e-12


@given(shares, shares, shares, shares, ceilings)
def test_the_share_stays_between_its_bounds(
    share: float, weak: float, strong: float, floor: float, ceiling: float | None
) -> None:
    left = pressed(share, weak, strong, floor, ceiling)
    top = share if ceiling is None else max(share, ceiling)
    assert min(share, floor) - 1e-12 <= left <= top + 1e-12


@given(quantiles, shares, shares, shares, leanings, shares, shares, shares)
def test_pressure_never_sends_a_request_to_the_pool_that_is_pressed(
    quantile: list[float],
    share: float,
    one: float,
    other: float,
    leaning: float,
    score: float,
    weak: float,
    floor: float,
) -> None:
    """Whatever the traffic: what is weak under little pressure is weak under more."""
    low, high = sorted((one, other))
    cutoff = Cutoff("small", "large", quantile, share=share)
    little = choose(cutoff, score, {"small": weak, "large": low}, leaning, floor=floor)
    much = choose(cutoff, score, {"small": weak, "large": high}, leaning, floor=floor)
    assert (little.pool, much.pool) != ("small", "large")


@given(quantiles, shares, leanings, leanings, shares)
def test_a_higher_leaning_never_takes_a_request_from_the_strong_pool(
    quantile: list[float], share: float, one: float, other: float, score: float
) -> None:
    low, high = sorted((one, other))
    cutoff = Cutoff("small", "large", quantile, share=share)
    # A leaning of exactly nought is none, and leaves even a share of nought as it is.
    pools = [choose(cutoff, score, {}, leaning or 1e-9).pool for leaning in (low, high)]
    assert pools != ["large", "small"]


@given(shares, leanings)
def test_a_leaned_share_is_a_share(share: float, leaning: float) -> None:
    assert 0.0 < biased(share, leaning) < 1.0


@given(quantiles, shares, shares, leanings)
def test_a_larger_share_never_has_a_higher_threshold(
    quantile: list[float], one: float, other: float, leaning: float
) -> None:
    low, high = sorted((one, other))
    assert threshold_for_share(quantile, low, leaning) >= threshold_for_share(quantile, high, leaning)


def follow(live: LiveScores, scores: Sequence[float]) -> tuple[list[bool], list[float]]:
    """Whether each request is strong, and the bias before the first and after each."""
    strong, biases = list[bool](), [live.bias]
    for score in scores:
        strong.append(score >= threshold_for_share(live.scores, live.share, live.bias))
        live.learn(score, live.share, strong[-1])
        biases.append(live.bias)
    return strong, biases


@settings(derandomize=True, max_examples=50)  # Any sample of 500 may miss a share by chance.
@given(
    quantiles,
    st.lists(st.integers(0, 1_000), min_size=3, max_size=20, unique=True).map(sorted),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.integers(),
)
def test_a_share_is_kept_on_any_distribution_of_scores(
    quantile: list[float], ends: list[int], share: float, seed: int
) -> None:
    """Each range between two ends has as many scores as any other, so narrow ranges are dense."""
    rng = random.Random(seed)
    places = [rng.randrange(len(ends) - 1) for _ in range(1_000)]
    scores = [rng.uniform(ends[place], ends[place + 1]) / 1_000 for place in places]
    strong, _ = follow(LiveScores(share, quantile), scores)
    assert abs(sum(strong[:500]) / 500 - share) <= 0.03
    assert abs(sum(strong[500:]) / 500 - share) <= 0.03


@given(quantiles, shares, st.lists(st.tuples(shares, st.integers(1, 400)), min_size=1, max_size=12))
def test_under_any_drift_the_error_is_bounded_and_so_is_the_window(
    quantile: list[float], share: float, phases: list[tuple[float, int]]
) -> None:
    """Every phase is one score again and again, the hardest case for a threshold."""
    scores = [score for score, times in phases for _ in range(times)]
    live = LiveScores(share, quantile)
    strong, biases = follow(live, scores)
    assert live.scores == sorted(live.scores)
    assert live.live <= len(live.scores) <= WINDOW
    kept = scores[len(scores) - live.live :]
    assert all(live.scores.count(score) >= kept.count(score) for score in set(kept))
    assume(max(map(abs, biases)) < BIAS_MAX)
    error = abs(sum(strong) - share * len(strong))
    assert error <= (max(biases) - min(biases)) / GAIN + 1e-6


@given(st.lists(st.tuples(gauges, st.floats(0.0, 60.0)), max_size=40), st.floats(0.0, 0.4))
def test_a_pressure_is_between_nought_and_one_whatever_a_pool_says(
    looks: list[tuple[dict[str, float], float]], dead_band: float
) -> None:
    subject = PoolPressure(LoadController(dead_band=dead_band), "large")
    now = 0.0
    for load, seconds in looks:
        subject.observe(load, now)
        now += seconds
        assert 0.0 <= subject.at(now) <= 1.0


@given(gauges, st.floats(0.0, 1e6))
def test_a_longer_queue_never_presses_less(load: dict[str, float], more: float) -> None:
    ramps = LoadController().ramps
    before = raw_pressure(load, ramps)
    after = raw_pressure({**load, "waiting": load.get("waiting", 0.0) + more}, ramps)
    assert before is None or (after is not None and after >= before)


@given(st.lists(st.tuples(st.floats(0.0, 1e3), st.floats(0.0, 1e3), st.booleans()), max_size=100))
def test_a_leaning_never_leaves_its_bound(decisions: list[tuple[float, float, bool]]) -> None:
    subject = BudgetController(Budget(dollars_per_thousand=1.0, bias_max=2.0))
    for number, (value, spread, is_pressed) in enumerate(decisions):
        subject.decided(value, float(number), spread=spread, pressed=is_pressed)
        assert -2.0 <= subject.bias <= 2.0


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["small", "large"]), st.floats(0, 9))),
    st.integers(1, 4),
)
def test_sessions_never_outgrow_their_bound_and_never_lie(
    kept: list[tuple[str, str, float]], entries: int
) -> None:
    subject = Sessions(entries, ttl_seconds=20.0)
    model: dict[str, tuple[str, float]] = {}
    now = 0.0
    for key, pool, seconds in kept:
        now += seconds
        subject.keep(key, pool, now)
        model[key] = (pool, now)
        assert len(subject) <= entries
        for known, (where, since) in list(model.items()):
            found = subject.find(known, now)
            assert found in (None, where)
            assert found is None or now - since <= 20.0
            model[known] = (where, now if found else since)
