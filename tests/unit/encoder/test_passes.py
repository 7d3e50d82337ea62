"""What a pass is expected to take."""

from __future__ import annotations

import pytest

from semroute_extproc.encoder.passes import PASS_UNITS, PassTime, units


def test_work_grows_with_the_text_up_to_the_window() -> None:
    assert units(0, 128) == PASS_UNITS
    assert units(100, 128) == PASS_UNITS + 25
    assert units(100_000, 128) == PASS_UNITS + 128


def test_before_the_first_pass_nothing_is_expected() -> None:
    assert (PassTime().mean, PassTime().high) == (0.0, 0.0)


def test_a_steady_pace_is_learnt() -> None:
    time = PassTime()
    for _ in range(100):
        time.learn(0.5, 50)
    assert time.mean == pytest.approx(0.01)
    assert time.high == pytest.approx(0.01, rel=1e-3)


def test_an_unsteady_pace_is_expected_to_be_slow_at_times() -> None:
    time = PassTime()
    for number in range(200):
        time.learn(1.0 if number % 2 else 3.0, 1)
    assert 1.5 < time.mean < 2.5
    assert time.high > 3.0
