"""The circuit breaker: when requests are let through, and who may probe."""

from __future__ import annotations

from semroute_extproc.state.breaker import Breaker


def test_failures_must_come_in_a_row_to_open_the_breaker() -> None:
    breaker = Breaker(2, 10.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert not breaker.allows(9.9)


def test_one_probe_at_a_time_and_its_failure_opens_the_breaker_again() -> None:
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0)
    assert breaker.allows(10.0)
    assert not breaker.allows(10.0)
    breaker.failed(10.0)
    assert not breaker.allows(19.9)
    assert breaker.allows(20.0)
    breaker.gave_up()
    assert breaker.allows(20.0)
    breaker.succeeded()
    assert not breaker.is_open
