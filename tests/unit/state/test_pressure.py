"""From a pool's gauges to its pressure."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from semroute_extproc.settings.controllers import LoadController, Ramp
from semroute_extproc.state.pressure import PoolPressure, raw_pressure

RAMPS = LoadController().ramps
FULL = {"running": 10.0, "waiting": 100.0}
QUIET = {"running": 1.0, "waiting": 0.0}


def settings(**changes: Any) -> LoadController:
    values = {"rise_seconds": 2.0, "fall_seconds": 20.0, "dead_band": 0.05, "stale_seconds": 10.0, **changes}
    return LoadController.model_validate(values)


def fed(subject: PoolPressure, load: dict[str, float], begin: float, seconds: float) -> float:
    """A look every second."""
    for step in range(int(seconds) + 1):
        subject.observe(load, begin + step)
    return subject.at(begin + int(seconds))


class TestRawPressure:
    @pytest.mark.parametrize(
        ("load", "pressure"),
        [
            ({"running": 10.0, "waiting": 0.0}, 0.0),
            ({"running": 10.0, "waiting": 5.0}, 0.5),
            ({"running": 10.0, "waiting": 400.0}, 1.0),
            ({"running": 0.0, "waiting": 3.0}, 1.0),
            ({"kv_cache_usage": 0.95}, pytest.approx(0.5)),
            ({"running": 10.0, "waiting": 2.0, "kv_cache_usage": 0.95}, pytest.approx(0.5)),
        ],
    )
    def test_the_measure_that_presses_most_counts(self, load: dict[str, float], pressure: float) -> None:
        assert raw_pressure(load, RAMPS) == pressure

    @pytest.mark.parametrize("load", [{}, {"waiting": 50.0}, {"running": 50.0}, {"kv_cache_usage": math.nan}])
    def test_what_is_not_known_says_nothing(self, load: dict[str, float]) -> None:
        assert raw_pressure(load, RAMPS) is None

    def test_any_gauge_may_have_a_ramp(self) -> None:
        assert raw_pressure({"running": 30.0}, {"running": Ramp(begin=20, full=40)}) == 0.5

    def test_a_ramp_must_rise(self) -> None:
        with pytest.raises(ValidationError, match="begin must be below full"):
            Ramp(begin=1, full=1)


class TestPoolPressure:
    def test_before_anything_is_known_there_is_no_pressure(self) -> None:
        subject = PoolPressure(settings(), "large")
        assert not subject.known
        assert subject.at(100.0) == 0.0
        assert not subject.known

    def test_it_rises_fast_and_falls_slowly(self) -> None:
        subject = PoolPressure(settings(), "large")
        assert fed(subject, QUIET, 0.0, 5) == 0.0
        assert fed(subject, FULL, 5.0, 4) > 0.8
        risen = fed(subject, FULL, 9.0, 30)
        assert risen == pytest.approx(1.0, abs=1e-3)
        assert fed(subject, QUIET, 39.0, 4) > 0.75
        assert fed(subject, QUIET, 43.0, 200) == 0.0

    def test_full_is_one_and_quiet_is_nought_in_spite_of_the_dead_band(self) -> None:
        subject = PoolPressure(settings(dead_band=0.2), "large")
        assert fed(subject, FULL, 0.0, 60) == pytest.approx(1.0)
        assert fed(subject, QUIET, 60.0, 400) == 0.0

    def test_jitter_within_the_dead_band_changes_nothing(self) -> None:
        subject = PoolPressure(settings(rise_seconds=0.1, fall_seconds=0.1), "large")
        fed(subject, {"running": 100.0, "waiting": 50.0}, 0.0, 20)
        told = set()
        for step in range(50):
            subject.observe({"running": 100.0, "waiting": 50.0 + 4.0 * (-1) ** step}, 21.0 + step)
            told.add(round(subject.at(21.0 + step), 6))
        assert len(told) <= 2, "one step to the band's other side, then rest"

    def test_a_stale_load_is_unknown_and_its_pressure_falls_as_slowly_as_quiet(self) -> None:
        subject = PoolPressure(settings(), "large")
        held = fed(subject, FULL, 0.0, 30)
        for second in range(31, 40):
            subject.observe({}, float(second))
        assert subject.at(40.0) == pytest.approx(held, abs=1e-3), "not stale yet"
        assert 0.4 < subject.at(50.0) < 0.75
        assert not subject.known
        assert subject.at(300.0) == 0.0

    def test_one_look_long_after_is_the_same_as_many_in_between(self) -> None:
        once, often = (PoolPressure(settings(), "large") for _ in range(2))
        for subject in (once, often):
            fed(subject, FULL, 0.0, 30)
        for tenth in range(300, 700):
            often.at(tenth / 10)
        assert once.at(70.0) == pytest.approx(often.at(70.0), abs=0.02)

    def test_a_clock_that_stands_still_or_goes_back_changes_nothing(self) -> None:
        subject = PoolPressure(settings(), "large")
        value = fed(subject, FULL, 0.0, 3)
        assert subject.at(3.0) == subject.at(1.0) == value

    def test_a_pool_may_have_ramps_of_its_own(self) -> None:
        own = settings(pools={"large": {"running": {"begin": 0, "full": 10}}})
        assert fed(PoolPressure(own, "large"), {"running": 10.0, "waiting": 0.0}, 0.0, 60) > 0.99
        assert fed(PoolPressure(own, "small"), {"running": 10.0, "waiting": 0.0}, 0.0, 60) == 0.0
