"""What holds of the controllers whatever comes: bounds, monotony, no request moved the wrong way."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.policy.context import Choice, Conditions, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.settings.controllers import Budget, LoadController
from semroute_extproc.state.budget import BudgetController
from semroute_extproc.state.pressure import PoolPressure, raw_pressure
from semroute_extproc.state.sessions import Sessions
from semroute_extproc.strategies.cutoff import Cutoff, biased, pressed

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
